"""The outbox relay as processes: kills, outages of Kafka's topic, drain."""

import asyncio
import signal
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from consumer.lifecycle.model import Author, Event
from schemas import Transition
from tests.builders import HOUR, MINUTE, close, message
from tests.demo.downstream import Downstream
from tests.e2e.conftest import Group, until
from tests.stack.broker import delete, read_all
from tests.stack.replica import Replica
from tests.stack.services import Services

NOW = datetime.now(UTC)
WAITING = "SELECT count(*) FROM transition_outbox"


@pytest.fixture
async def topic(group: Group, stack: Services) -> AsyncIterator[str]:
    name = f"{group.topic}.transition"
    await group.create_topic(name, partitions=3)
    yield name
    await delete(stack.kafka, name)


async def relay(group: Group, topic: str, **settings: str) -> Replica:
    started = await group.unready_replica("outbox", CONSUMER_KAFKA__TRANSITION_TOPIC=topic, **settings)
    await until(started.ready, "the relay is ready")
    return started


async def published(group: Group, topic: str) -> list[Transition]:
    return [Transition.model_validate_json(record.value or b"") for record in await read_all(group.kafka, topic)]


async def converse(group: Group, conversations: int, round_number: int = 0) -> None:
    """Three transitions a conversation and round."""
    at = NOW - HOUR + 5 * MINUTE * round_number
    events: list[Event] = []
    for number in range(conversations):
        key = f"c-{number}"
        events.append(message(at=at, conversation_id=key))
        events.append(message(Author.AGENT, at + MINUTE, conversation_id=key))
        events.append(close(at=at + 2 * MINUTE, conversation_id=key))
    await group.publish(*events)


async def until_relayed(group: Group) -> None:
    async def empty() -> bool:
        return int(await group.one(WAITING)) == 0

    await until(empty, "the outbox is empty")


async def test_a_downstream_service_rebuilds_every_status_from_the_stream_under_kills(group: Group, topic: str) -> None:
    replica, relays = await group.replica(), [await relay(group, topic) for _ in range(2)]

    for round_number in range(4):
        await converse(group, 50, round_number)
        await relays[round_number % 2].stop(signal.SIGKILL)
        relays[round_number % 2] = await relay(group, topic, CONSUMER_OUTBOX__BATCH="7")
        await replica.stop(signal.SIGKILL)
        replica = await group.replica()
    await group.until_applied(600)
    await until_relayed(group)

    downstream, versions = Downstream(), defaultdict[str, dict[int, None]](dict)
    events = await published(group, topic)
    downstream.read(events)
    for event in events:
        versions[event.subject].setdefault(event.data.version)
    statuses = {key: place[-1] for key, place in downstream.statuses.items()}
    assert statuses == dict(await group.rows("SELECT conversation_id, status FROM conversation"))
    assert all(list(seen) == sorted(seen) for seen in versions.values())
    assert len(downstream.known) == await group.one(
        "SELECT count(*) FROM conversation_event WHERE from_status IS DISTINCT FROM to_status"
    )


async def test_sigterm_finishes_the_turn_and_a_second_relay_goes_on(group: Group, topic: str) -> None:
    await group.replica()
    first = await relay(group, topic)
    await converse(group, 20)
    await group.until_applied(60)

    code = await first.stop()
    await relay(group, topic)
    await until_relayed(group)

    assert code == 0
    assert len({event.id for event in await published(group, topic)}) == 60


async def test_a_relay_says_what_waits_and_for_how_long(group: Group, topic: str) -> None:
    await group.replica()
    await converse(group, 10)
    await group.until_applied(30)

    started = await relay(group, topic)
    await until_relayed(group)

    async def counted() -> bool:
        return await started.count("conversation_outbox_published_total") == 30

    await until(counted, "the transitions are counted")
    assert await started.count("conversation_outbox_batch_transitions_sum") == 30
    _, status = await started.get("/status")
    assert '"outbox": {"published": 30' in status
    assert not await started.count("conversation_events_total")


async def test_without_its_topic_a_relay_says_what_to_run(group: Group) -> None:
    started = await group.unready_replica("outbox", CONSUMER_KAFKA__TRANSITION_TOPIC="not-there")

    assert await asyncio.wait_for(started.process.wait(), 60) == 2
    assert "topic not-there does not exist: run `conversation-consumer topics`" in started.log.read_text()
