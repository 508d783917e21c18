"""What `PartitionWorker` relies on: every fake log keeps the promises of the one over Kafka."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import pytest
from aiokafka import TopicPartition

from consumer.errors import PartitionStoppedError
from consumer.kafka.admin import admin
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.producer import KafkaProducer
from consumer.kafka.source import KafkaSource
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.records import Record
from consumer.settings import KafkaSettings, WorkerSettings
from consumer.worker import PartitionLog
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer
from tests.memory_log import MemoryLog
from tests.stack.broker import delete
from tests.stack.services import Services

SECONDS = 20.0
"""Deadline of what is expected to happen."""


class Subject(Protocol):
    """A partition log, and what happens to it from outside."""

    log: PartitionLog

    async def publish(self, *values: bytes) -> None: ...

    async def revoke(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self._log = MemoryLog(Partition("group", "events", 0))
        self.log: PartitionLog = self._log

    async def publish(self, *values: bytes) -> None:
        self._log.append((None, value) for value in values)

    async def revoke(self) -> None:
        self._log.revoke()


class Simulated:
    """The adapter on a client in memory, as the simulation runs it."""

    def __init__(self) -> None:
        self._cluster = MemoryCluster()
        self._cluster.create("events")
        self._place = TopicPartition("events", 0)
        self._consumer = MemoryConsumer(self._cluster, group_id="group")
        self._assigned: asyncio.Future[AssignedPartition] = asyncio.get_running_loop().create_future()
        self._source = KafkaSource(
            KafkaSettings(group_id="group", topics=("events",)),
            WorkerSettings(max_buffered=5),
            Metrics(("events",)),
            Health(),
            self._worker,
            client=lambda **_: self._opened(),
            cluster_id=self._cluster.id,
        )

    def _opened(self) -> MemoryConsumer:
        return self._consumer

    async def start(self) -> None:
        self._running = asyncio.create_task(self._source.run())
        await until(lambda: self._consumer._listener is not None)
        await self._consumer.assign(self._place)
        self.log: PartitionLog = await asyncio.wait_for(self._assigned, SECONDS)

    async def _worker(self, partition: AssignedPartition) -> None:
        self._assigned.set_result(partition)
        while not await partition.revoked_within(SECONDS):
            pass

    async def publish(self, *values: bytes) -> None:
        for value in values:
            self._cluster.append(self._place, value)

    async def revoke(self) -> None:
        self._source.stop()
        await asyncio.wait_for(self._running, SECONDS)


class Real:
    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._assigned: asyncio.Future[AssignedPartition] = asyncio.get_running_loop().create_future()
        self._source = KafkaSource(
            settings, WorkerSettings(max_buffered=5), Metrics(settings.topics), Health(), self._worker
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._running = asyncio.create_task(self._source.run())
        self._partition = await asyncio.wait_for(self._assigned, SECONDS)
        self.log: PartitionLog = self._partition

    async def _worker(self, partition: AssignedPartition) -> None:
        self._assigned.set_result(partition)
        while not await partition.revoked_within(SECONDS):
            pass

    async def publish(self, *values: bytes) -> None:
        async with KafkaProducer.open(self._settings) as producer:
            await producer.publish(self._settings.topics[0], [(None, value) for value in values])

    async def revoke(self) -> None:
        self._source.stop()
        assert self._running is not None
        await asyncio.wait_for(self._running, SECONDS)

    @property
    def partition(self) -> AssignedPartition:
        return self._partition


@pytest.fixture
async def real(stack: Services) -> AsyncIterator[Real]:
    name = f"test-{secrets.token_hex(6)}"
    settings = KafkaSettings(bootstrap_servers=stack.kafka, group_id=name, topics=(name,))
    async with admin(settings) as client:
        await client.create(name, 1, 1, {})
    made = Real(settings)
    await made.start()
    yield made
    await made.revoke()
    await delete(stack.kafka, name)


@pytest.fixture(params=["memory", "simulated", "real"])
def subject(request: pytest.FixtureRequest) -> Subject:
    if request.param == "memory":
        return InMemory()
    if request.param == "simulated":
        simulated: Simulated = request.getfixturevalue("simulated")
        return simulated
    made: Real = request.getfixturevalue("real")
    return made


@pytest.fixture
async def simulated() -> AsyncIterator[Simulated]:
    made = Simulated()
    await made.start()
    yield made
    await made.revoke()


async def taken(log: PartitionLog, count: int, limit: int = 100) -> list[Record]:
    """The next so many records, in as many portions as they come in."""
    found: list[Record] = []
    async with asyncio.timeout(SECONDS):
        while len(found) < count:
            portion = await log.take(min(limit, count - len(found)), 1.0)
            assert len(portion) <= limit
            found += portion
    return found


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


async def test_the_bounds_are_the_first_offset_and_the_one_after_the_last(subject: Subject) -> None:
    await subject.publish(b"a", b"b")

    assert await subject.log.bounds() == (0, 2)
    assert await subject.log.cluster_id()


async def test_records_come_in_order_and_as_they_were_published(subject: Subject) -> None:
    await subject.publish(b"a", b"b", b"c")
    subject.log.seek(0)

    found = await taken(subject.log, 3)

    assert values(found) == [b"a", b"b", b"c"]
    assert [record.offset for record in found] == [0, 1, 2]


async def test_take_never_returns_more_than_its_limit(subject: Subject) -> None:
    await subject.publish(*(b"%d" % number for number in range(12)))
    subject.log.seek(0)

    assert values(await taken(subject.log, 12, limit=2)) == [b"%d" % number for number in range(12)]


async def test_take_returns_nothing_when_its_time_is_over(subject: Subject) -> None:
    subject.log.seek(0)

    assert list(await subject.log.take(10, 0.05)) == []
    assert not subject.log.is_revoked()


async def test_records_wake_a_take_that_waits(subject: Subject) -> None:
    subject.log.seek(0)
    waiting = asyncio.create_task(taken(subject.log, 1))

    await subject.publish(b"late")

    assert values(await waiting) == [b"late"]


async def test_a_seek_back_brings_the_same_records_again_in_order(subject: Subject) -> None:
    await subject.publish(*(b"%d" % number for number in range(8)))
    subject.log.seek(0)
    first = await taken(subject.log, 6)

    subject.log.seek(2)

    assert values(await taken(subject.log, 6)) == [b"2", b"3", b"4", b"5", b"6", b"7"]
    assert values(first) == [b"0", b"1", b"2", b"3", b"4", b"5"]


async def test_a_seek_ahead_drops_what_is_buffered(subject: Subject) -> None:
    await subject.publish(*(b"%d" % number for number in range(5)))
    subject.log.seek(0)
    await taken(subject.log, 1)

    subject.log.seek(4)

    assert values(await taken(subject.log, 1)) == [b"4"]


async def test_what_is_fetched_before_a_pause_is_not_lost(subject: Subject) -> None:
    await subject.publish(b"a", b"b", b"c")
    subject.log.seek(0)
    before = await taken(subject.log, 1)

    subject.log.pause()
    after = await taken(subject.log, 2)

    assert values([*before, *after]) == [b"a", b"b", b"c"]


async def test_what_is_applied_does_not_come_again(subject: Subject) -> None:
    await subject.publish(b"a")
    subject.log.seek(0)
    await taken(subject.log, 1)

    subject.log.applied(1)

    assert list(await subject.log.take(1, 0.05)) == []


async def test_a_revocation_wakes_a_take_that_waits(subject: Subject) -> None:
    subject.log.seek(0)
    waiting = asyncio.create_task(subject.log.take(10, 10 * SECONDS))
    await asyncio.sleep(0)

    await subject.revoke()

    assert list(await asyncio.wait_for(waiting, SECONDS)) == []
    assert subject.log.is_revoked()


async def test_nothing_is_taken_after_a_revocation(subject: Subject) -> None:
    await subject.publish(b"a", b"b")
    subject.log.seek(0)
    await taken(subject.log, 1)

    await subject.revoke()

    assert list(await subject.log.take(10, 10 * SECONDS)) == []
    subject.log.seek(0)
    assert list(await subject.log.take(10, 10 * SECONDS)) == []


async def test_revoked_within_says_whether_it_was_in_time(subject: Subject) -> None:
    assert not await subject.log.revoked_within(0.01)
    waiter = asyncio.create_task(subject.log.revoked_within(10 * SECONDS))
    await asyncio.sleep(0)

    await subject.revoke()

    assert await asyncio.wait_for(waiter, SECONDS)


async def test_a_failure_surfaces_once_the_buffer_is_empty(real: Real) -> None:
    await real.publish(b"a", b"b")
    real.log.seek(0)
    first = await taken(real.log, 1)
    await until(lambda: real.partition._fetched_to == 2)

    real.partition.fail("the next record cannot be read")
    real.log.pause()

    assert values([*first, *await taken(real.log, 1)]) == [b"a", b"b"]
    with pytest.raises(PartitionStoppedError, match="cannot be read"):
        await real.log.take(1, SECONDS)
    assert not real.partition.wants_records


async def test_a_seek_ends_a_failure(real: Real) -> None:
    await real.publish(b"a")
    real.log.seek(0)
    real.partition.fail("the next record cannot be read")

    real.log.seek(0)

    assert values(await taken(real.log, 1)) == [b"a"]


async def test_an_offset_outside_of_the_log_is_a_failure(real: Real) -> None:
    await real.publish(b"a")
    real.log.seek(17)

    with pytest.raises(PartitionStoppedError, match="no longer in the log"):
        await taken(real.log, 1)


async def test_a_full_buffer_and_a_pause_end_the_fetching(real: Real) -> None:
    assert not real.partition.wants_records
    real.log.seek(0)
    assert real.partition.wants_records

    real.log.pause()
    assert not real.partition.wants_records

    await real.publish(*(b"%d" % number for number in range(12)))
    assert values(await taken(real.log, 1)) == [b"0"]
    await until(lambda: not real.partition.wants_records)
    assert values(await taken(real.log, 11)) == [b"%d" % number for number in range(1, 12)]
