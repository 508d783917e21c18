"""The outbox relay on real services: order, late commits, turns, outages."""

import asyncio
import json
import secrets
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from consumer.errors import UnavailableError
from consumer.kafka.admin import admin, transition_limit
from consumer.kafka.bulk import BulkProducer
from consumer.lifecycle.model import Author, Status
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.outbox import OutboxRelay, OutboxRow, encoded, event_id
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import KafkaSettings, OutboxSettings
from schemas import Transition
from tests.builders import HOUR, MINUTE, close, message
from tests.checker.verdicts import transition_id
from tests.conftest import opened
from tests.e2e.conftest import until
from tests.stack.broker import delete, read_all
from tests.stack.database import execute
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.replica import Replica
from tests.stack.roles import as_owner
from tests.stack.services import Services

NOW = datetime.now(UTC)
QUICK = OutboxSettings(interval_seconds=0.02, outage_backoff_max_seconds=0.05)
ROW = OutboxRow(7, "c-1", 2, 5, "pending", "agent_closed", "agent-7", None, NOW, NOW + timedelta(seconds=1))


@dataclass(frozen=True, slots=True)
class Stream:
    """A transition topic, and what was published to it."""

    kafka: KafkaSettings

    async def transitions(self) -> list[Transition]:
        records = await read_all(self.kafka, self.kafka.transition_topic)
        return [Transition.model_validate_json(record.value or b"") for record in records]


@pytest.fixture
async def stream(stack: Services) -> AsyncIterator[Stream]:
    kafka = KafkaSettings(bootstrap_servers=stack.kafka, transition_topic=f"test-{secrets.token_hex(6)}")
    async with admin(kafka) as client:
        await client.create(kafka.transition_topic, 3, 1, {})
    yield Stream(kafka)
    await delete(stack.kafka, kafka.transition_topic)


class Recorder:
    """What was published, in order; the first times it fails after having published."""

    def __init__(self, failures: int = 0) -> None:
        self.versions: list[tuple[str, int]] = []
        self.failures = failures

    async def __call__(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        events = [json.loads(value) for _, value in records]
        self.versions += [(event["subject"], event["data"]["version"]) for event in events]
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no acknowledgement")


async def relay_all(store: PostgresStore, *publishers: object, settings: OutboxSettings = QUICK) -> Metrics:
    """Has a relay for each publisher, until the outbox is empty."""
    metrics = Metrics()
    relays = [
        OutboxRelay(store, publish, settings=settings, metrics=metrics, health=Health())  # type: ignore[arg-type]
        for publish in publishers
    ]
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for relay in relays:
            group.create_task(relay.run())
        while (await store.backlog()).rows:  # noqa: ASYNC110 - the database has no event to wait for
            await asyncio.sleep(0.01)
        for relay in relays:
            relay.stop()
            relay.stop()
    return metrics


async def converse(store: PostgresStore, conversations: int) -> None:
    """Three transitions each."""
    service = ConversationService(store)
    for number in range(conversations):
        key = f"c-{number}"
        await service.apply([message(at=NOW - HOUR, conversation_id=key)])
        await service.apply([message(Author.AGENT, NOW - HOUR + MINUTE, conversation_id=key)])
        await service.apply([close(at=NOW - HOUR + 2 * MINUTE, conversation_id=key)])


def test_a_transition_is_published_as_the_contract_has_it() -> None:
    key, value = encoded(ROW)

    event = Transition.model_validate_json(value)
    assert key == b"c-1"
    assert (event.source, event.subject, event.time) == ("conversation-consumer", "c-1", ROW.recorded_at)
    assert (event.data.session, event.data.version) == (2, 5)
    assert (event.data.from_status, event.data.to_status) == ("pending", "agent_closed")
    assert (event.data.actor, event.data.reason, event.data.occurred_at) == ("agent-7", None, NOW)
    assert event.model_fields_set >= {"specversion", "type"}


def test_the_id_of_a_transition_is_of_its_content_and_not_of_its_row() -> None:
    assert event_id(ROW) == event_id(ROW._replace(id=8))
    assert len({event_id(row) for row in (ROW, ROW._replace(session=3), ROW._replace(recorded_at=NOW))}) == 3


async def test_every_transition_is_published_once_and_the_outbox_is_empty(database: str, stream: Stream) -> None:
    limit = await transition_limit(stream.kafka)
    async with (
        opened(database) as store,
        BulkProducer.open(stream.kafka, stream.kafka.transition_topic, limit) as producer,
    ):
        await converse(store, 20)
        metrics = await relay_all(store, producer.publish)
        expected = {
            transition_id(row, at)
            for number in range(20)
            for row, at in await store.history(f"c-{number}")
            if row.is_transition
        }

    published = await stream.transitions()
    assert len(published) == 60
    assert {event.id for event in published} == expected
    assert metrics.registry.get_sample_value("conversation_outbox_published_total") == 60


async def test_transitions_of_a_conversation_are_published_by_version(store: PostgresStore) -> None:
    await converse(store, 10)
    recorder = Recorder()

    await relay_all(store, recorder, settings=QUICK.model_copy(update={"batch": 7}))

    for number in range(10):
        assert [version for key, version in recorder.versions if key == f"c-{number}"] == [1, 2, 3]


async def test_relays_take_turns_and_publish_nothing_twice(store: PostgresStore) -> None:
    await converse(store, 20)
    recorders = [Recorder(), Recorder(), Recorder()]

    await relay_all(store, *recorders, settings=QUICK.model_copy(update={"batch": 2}))

    published = [one for recorder in recorders for one in recorder.versions]
    assert len(published) == len(set(published)) == 60


async def test_what_was_not_acknowledged_is_published_again(store: PostgresStore) -> None:
    await converse(store, 1)
    recorder = Recorder(failures=2)

    await relay_all(store, recorder)

    assert recorder.versions == 3 * [("c-0", 1), ("c-0", 2), ("c-0", 3)]


async def test_a_transaction_that_commits_late_with_a_smaller_id_is_not_passed_over(
    store: PostgresStore, database: str
) -> None:
    insert = """INSERT INTO transition_outbox (conversation_id, session, version, to_status, actor, occurred_at)
        VALUES ($1, 1, 1, 'pending', 'user', now()) RETURNING id"""
    recorder = Recorder()
    slow, quick = await asyncpg.connect(database), await asyncpg.connect(database)
    transaction = slow.transaction()
    await transaction.start()
    late = await slow.fetchval(insert, "late")
    early = await quick.fetchval(insert, "early")

    await relay_all(store, recorder)
    await transaction.commit()
    await relay_all(store, recorder)

    assert late < early
    assert recorder.versions == [("early", 1), ("late", 1)]
    await slow.close()
    await quick.close()


async def test_a_row_that_is_committed_during_a_turn_is_not_deleted_with_it(
    store: PostgresStore, database: str
) -> None:
    await converse(store, 1)

    async with store.turn(10, 30) as batch:
        assert batch
        await execute(
            database,
            "INSERT INTO transition_outbox OVERRIDING SYSTEM VALUE "
            "VALUES (0, 'late', 1, 1, NULL, 'pending', 'user', NULL, now())",
        )
        await batch.delete()

    assert (await store.backlog()).rows == 1


async def test_a_relay_goes_on_after_its_connection_was_ended(store: PostgresStore, database: str) -> None:
    await converse(store, 5)
    recorder = Recorder()
    ended = False

    async def publish(records: Sequence[tuple[bytes, bytes]]) -> None:
        nonlocal ended
        await recorder(records)
        if not ended:
            ended = True
            await execute(
                database,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' "
                "AND datname = current_database()",
            )

    await relay_all(store, publish)

    assert len(recorder.versions) == 30
    assert len(set(recorder.versions)) == 15


async def test_a_frozen_relay_loses_its_turn(store: PostgresStore) -> None:
    await converse(store, 1)

    async def until_another_has_a_turn() -> None:
        while True:
            async with store.turn(10, 30) as batch:
                if batch is not None:
                    return

    async def frozen_turn() -> None:
        async with store.turn(10, 0.05) as batch:
            assert batch
            await asyncio.wait_for(until_another_has_a_turn(), 20)
            await batch.delete()

    with pytest.raises(UnavailableError):
        await frozen_turn()

    assert (await store.backlog()).rows == 3


async def test_the_history_and_the_stream_agree_on_a_status(store: PostgresStore) -> None:
    await ConversationService(store).apply([close(Status.FAILED, NOW, reason="lost")])

    async with store.turn(10, 30) as batch:
        assert batch
        ((row, recorded_at),) = await store.history("c-1")
        assert event_id(batch.rows[0]) == transition_id(row, recorded_at)


async def test_a_lock_on_the_table_is_waited_for(store: PostgresStore, database: str) -> None:
    await converse(store, 1)
    recorder = Recorder()
    holder = await asyncpg.connect(as_owner(database))
    transaction = holder.transaction()
    await transaction.start()
    await holder.execute("LOCK TABLE transition_outbox IN ACCESS EXCLUSIVE MODE")

    with pytest.raises(UnavailableError, match="holds the table transition_outbox"):
        async with store.turn(10, 30):
            pass
    with pytest.raises(UnavailableError, match="holds the table transition_outbox"):
        await store.backlog()
    await transaction.commit()
    await holder.close()
    await relay_all(store, recorder)

    assert len(recorder.versions) == 3


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    broker = KafkaBroker()
    yield broker
    broker.thaw()
    broker.stop()


@pytest.fixture
async def impatient(broker: KafkaBroker) -> KafkaSettings:
    """A topic on that broker; requests take two seconds at most."""
    kafka = KafkaSettings(
        bootstrap_servers=broker.bootstrap_servers,
        transition_topic=f"test-{secrets.token_hex(6)}",
        request_timeout_seconds=2,
    )
    async with admin(kafka) as client:
        await client.create(kafka.transition_topic, 3, 1, {})
    return kafka


class TestBrokerThatStandsStill:
    """A broker that is there and answers nothing."""

    async def test_a_publish_ends_in_time_and_the_next_one_succeeds(
        self, broker: KafkaBroker, impatient: KafkaSettings
    ) -> None:
        async with BulkProducer.open(impatient, impatient.transition_topic, 2**20) as producer:
            await producer.publish([(b"c-1", b"before")])
            tasks = len(asyncio.all_tasks())
            for _ in range(3):
                broker.freeze()
                async with asyncio.timeout(10):
                    with pytest.raises(UnavailableError):
                        await producer.publish([(b"c-1", b"during")])
                broker.thaw()
                await producer.publish([(b"c-1", b"after")])

            assert len(asyncio.all_tasks()) <= tasks + 1

    async def test_a_relay_is_not_ready_counts_on_and_stops_when_told(
        self, broker: KafkaBroker, impatient: KafkaSettings, database: str, tmp_path: Path
    ) -> None:
        settings = {
            "CONSUMER_DATABASE__URL": database,
            "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "CONSUMER_KAFKA__TRANSITION_TOPIC": impatient.transition_topic,
            "CONSUMER_KAFKA__REQUEST_TIMEOUT_SECONDS": "2",
        }
        relay = await Replica(settings, tmp_path / "outbox.log", "consumer", "outbox").start()
        try:
            async with opened(database) as store:
                await converse(store, 1)
                await until(lambda: counted(relay, "conversation_outbox_published_total", 3), "three are published")
                broker.freeze()
                await ConversationService(store).apply([message(at=NOW, conversation_id="c-0")])
            await until(lambda: unready(relay), "the relay is not ready")
            await until(lambda: counted(relay, "conversation_outbox_rows", 1), "what waits is counted")
            async with asyncio.timeout(30):
                code = await relay.stop()
        finally:
            broker.thaw()
            await relay.stop(signal.SIGKILL)

        assert code == 0


async def counted(relay: Replica, metric: str, expected: float) -> bool:
    return await relay.count(metric) == expected


async def unready(relay: Replica) -> bool:
    return (await relay.get("/readyz"))[0] == 503
