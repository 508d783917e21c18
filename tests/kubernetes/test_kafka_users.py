"""The users of Kafka in the manifests, on a real broker that enforces their rights: enough, and none too many."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.decoding import encoded
from consumer.kafka.admin import admin
from consumer.kafka.connection import connection_arguments
from consumer.kafka.producer import KafkaProducer
from consumer.service.service import ConversationService
from tests.builders import HOUR, message
from tests.conftest import opened
from tests.e2e.conftest import until
from tests.kubernetes.kafka_users import SecuredKafka, secured_kafka
from tests.kubernetes.manifests import Manifests, Object
from tests.stack.broker import read_all
from tests.stack.database import APPLIED
from tests.stack.replica import Replica

EVENTS, DEAD_LETTERS, TRANSITIONS = "conversation.events", "conversation.dead-letter", "conversation.transition"
GROUP = "conversation-consumer"


@dataclass(frozen=True, slots=True)
class LesserUser:
    """A user of the manifests without one right."""

    command: str
    without: str
    acls: tuple[Object, ...]

    @property
    def name(self) -> str:
        return f"{self.command}-without-{self.without}"


def lesser_users(manifests: Manifests) -> Iterator[LesserUser]:
    """Read and Write imply Describe, so that is left out only where it stands without them."""
    for command, user in (("run", "conversation-consumer"), ("ticker", "conversation-ticker")):
        acls = manifests.of("KafkaUser")[user]["spec"]["authorization"]["acls"]
        for acl in acls:
            needed = set(acl["operations"]) - ({"Describe"} if {"Read", "Write"} & set(acl["operations"]) else set())
            for operation in sorted(needed):
                rest = acl | {"operations": [other for other in acl["operations"] if other != operation]}
                others = (rest if each is acl else each for each in acls)
                yield LesserUser(command, f"{operation}-{acl['resource']['name']}", tuple(others))


@pytest.fixture(scope="module")
def broker(prod: Manifests) -> Iterator[SecuredKafka]:
    with secured_kafka(*prod.of("KafkaUser"), *(user.name for user in lesser_users(prod))) as kafka:
        asyncio.run(kafka.set_up(prod))
        yield kafka


@pytest.fixture
async def replica(broker: SecuredKafka, database: str, tmp_path: Path) -> AsyncIterator[Replica]:
    settings = broker.environment("conversation-consumer") | {"CONSUMER_DATABASE__URL": database}
    started = await Replica(settings, tmp_path / "replica.log").start()
    yield started
    await started.stop(signal.SIGKILL)


async def test_a_replica_can_do_its_work(broker: SecuredKafka, database: str, replica: Replica) -> None:
    async with KafkaProducer.open(broker.superuser) as producer:
        await producer.publish(EVENTS, [encoded(message()), (b"c-2", b"no event")])
    published = len(await read_all(broker.superuser, EVENTS))

    async def applied() -> bool:
        connection = await asyncpg.connect(database)
        try:
            return int(await connection.fetchval(APPLIED)) == published
        finally:
            await connection.close()

    await until(applied, "all records are applied")
    await until(lambda: committed(replica), "offsets are committed to Kafka")

    assert len(await read_all(broker.superuser, DEAD_LETTERS)) == 1
    assert await replica.count("conversation_offset_commits_total", result="error") == 0
    assert await replica.ready()
    assert await replica.stop() == 0
    assert "uthorization" not in replica.log.read_text()


async def committed(replica: Replica) -> bool:
    return await replica.count("conversation_offset_commits_total", result="ok") > 0


async def test_a_ticker_can_do_its_work(broker: SecuredKafka, database: str, tmp_path: Path) -> None:
    before = len(await read_all(broker.superuser, EVENTS))
    async with opened(database) as store:
        await ConversationService(store).apply([message(at=await store.now() - 49 * HOUR)])
    settings = broker.environment("conversation-ticker") | {"CONSUMER_DATABASE__URL": database}
    ticker = await Replica(settings, tmp_path / "ticker.log", "consumer", "ticker").start()

    async def ticked() -> bool:
        return len(await read_all(broker.superuser, EVENTS)) == before + 1

    try:
        await until(ticked, "a tick is published")
        assert await ticker.stop() == 0
    finally:
        await ticker.stop(signal.SIGKILL)


async def test_a_relay_can_do_its_work(broker: SecuredKafka, database: str, tmp_path: Path) -> None:
    relay = await started_relay(broker, "conversation-outbox", database, tmp_path)

    async def published() -> bool:
        return len(await read_all(broker.superuser, TRANSITIONS)) == 1

    try:
        await until(published, "the transition is published")
        assert await relay.stop() == 0
    finally:
        await relay.stop(signal.SIGKILL)


async def test_a_relay_that_may_not_write_names_the_right_that_it_needs(
    broker: SecuredKafka, database: str, tmp_path: Path
) -> None:
    for operation in ("Describe", "DescribeConfigs"):
        await broker.grant("conversation-scaler", {"type": "topic", "name": TRANSITIONS}, operation)
    relay = await started_relay(broker, "conversation-scaler", database, tmp_path)

    async def says_why() -> bool:
        status, text = await relay.get("/readyz")
        return status == 503 and "denies this user access" in text and "needs Write on its topics" in text

    try:
        await until(says_why, "the relay says what it may not do")
        assert await relay.stop() == 0
    finally:
        await relay.stop(signal.SIGKILL)


async def started_relay(broker: SecuredKafka, user: str, database: str, directory: Path) -> Replica:
    """A relay with one transition to publish."""
    async with opened(database) as store:
        await ConversationService(store).apply([message(at=await store.now())])
    settings = broker.environment(user) | {"CONSUMER_DATABASE__URL": database}
    return await Replica(settings, directory / "outbox.log", "consumer", "outbox").start()


async def test_no_right_can_be_taken_away(broker: SecuredKafka, prod: Manifests, database: str, tmp_path: Path) -> None:
    users, processes = list(lesser_users(prod)), []
    for user in users:
        for acl in user.acls:
            await broker.grant(user.name, acl["resource"], *acl["operations"])
        settings = broker.environment(user.name) | {"CONSUMER_DATABASE__URL": database}
        processes.append(await Replica(settings, tmp_path / user.name, "consumer", user.command).start())

    try:
        codes = await asyncio.wait_for(asyncio.gather(*(each.process.wait() for each in processes)), 120)
    finally:
        for each in processes:
            await each.stop(signal.SIGKILL)

    assert len(users) == 9
    assert {user.name: code for user, code in zip(users, codes, strict=True) if code not in (1, 2)} == {}
    assert all("uthorization" in each.log.read_text() or "may not" in each.log.read_text() for each in processes)


async def test_history_can_be_pruned_as_the_user_of_the_replicas(broker: SecuredKafka, database: str) -> None:
    settings = broker.environment("conversation-consumer") | {"CONSUMER_DATABASE__URL": database}
    command = [sys.executable, "-m", "consumer", "prune", "--yes"]

    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **settings})

    assert await process.wait() == 0


async def test_the_autoscaler_can_read_the_lag(broker: SecuredKafka, database: str, replica: Replica) -> None:
    scaler = broker.as_user("conversation-scaler")
    async with KafkaProducer.open(broker.superuser) as producer:
        await producer.publish(EVENTS, [encoded(message())])
    await until(lambda: committed(replica), "offsets are committed to Kafka")

    async with admin(scaler) as client:
        offsets = await client._client.list_consumer_group_offsets(GROUP)
    reader = AIOKafkaConsumer(**connection_arguments(scaler))
    await reader.start()
    ends = await reader.end_offsets([TopicPartition(EVENTS, number) for number in range(12)])
    await reader.stop()

    assert 0 < sum(offset.offset for offset in offsets.values()) <= sum(ends.values())
