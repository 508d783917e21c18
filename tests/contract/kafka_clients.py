"""A topic with its clients, real or in memory, and what happens to them from outside."""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.record.util import calc_crc32c

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer
from tests.memory_kafka.producer import MemoryProducer
from tests.stack.broker import delete

SOON = 1_000
"""How long a fetch may take, in milliseconds."""
SECONDS = 20.0
"""Deadline of what is expected to happen."""
LIMIT = 1_000
"""The topic's limit on a record, in bytes; producers here have a limit of twice that."""


class Rebalances(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[tuple[str, set[int]]] = []
        self.error: Exception | None = None
        self._changed = asyncio.Event()

    async def until(self, count: int) -> None:
        """Waits for so many calls."""
        async with asyncio.timeout(SECONDS):
            while len(self.seen) < count:
                self._changed.clear()
                await self._changed.wait()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._note("revoked", revoked)
        if self.error:
            raise self.error

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._note("assigned", assigned)

    def _note(self, what: str, tps: Iterable[TopicPartition]) -> None:
        self.seen.append((what, {tp.partition for tp in tps}))
        self._changed.set()


class Subject(Protocol):
    """A topic of two partitions, a consumer of it in a group, and what happens to both from outside."""

    topic: str
    consumer: Any
    producer: Any
    unreachable: Any
    rebalances: Rebalances

    async def join(self) -> None:
        """Returns once the group has given the consumer both partitions."""

    async def rebalance(self) -> None:
        """The group gives one of the partitions to somebody else."""

    async def publish_unreadable(self, partition: int) -> None: ...

    async def publish_aborted(self, partition: int) -> None: ...

    async def delete_before(self, partition: int, offset: int) -> None: ...

    async def committed(self, partition: int) -> int | None: ...


AnySubject = TypeVar("AnySubject", bound=Subject)


class InMemory:
    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.topic = "events"
        self.cluster.create(self.topic, 2, LIMIT)
        self.rebalances = Rebalances()
        self.consumer: Any = MemoryConsumer(self.cluster, group_id="group", request_timeout_ms=500)
        self.producer: Any = MemoryProducer(self.cluster, max_request_size=2 * LIMIT, request_timeout_ms=500)
        down = MemoryCluster()
        down.fail()
        self.unreachable: Any = MemoryProducer(down)

    async def join(self) -> None:
        self.consumer.subscribe(topics=[self.topic], listener=self.rebalances)
        starting = asyncio.create_task(self.consumer.start())
        await self.consumer.assign(*(TopicPartition(self.topic, number) for number in range(2)))
        await starting

    async def rebalance(self) -> None:
        await self.consumer.assign(TopicPartition(self.topic, 0))

    async def publish_unreadable(self, partition: int) -> None:
        error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        self.cluster.append_unreadable(TopicPartition(self.topic, partition), error)

    async def publish_aborted(self, partition: int) -> None:
        for _ in range(2):
            self.cluster.append_marker(TopicPartition(self.topic, partition))

    async def delete_before(self, partition: int, offset: int) -> None:
        self.cluster.delete_before(TopicPartition(self.topic, partition), offset)

    async def committed(self, partition: int) -> int | None:
        return self.cluster.committed.get(("group", TopicPartition(self.topic, partition)))


class Real:
    def __init__(self, brokers: str, topic: str, stack: AsyncExitStack) -> None:
        self._brokers = brokers
        self._stack = stack
        self.topic = topic
        self.rebalances = Rebalances()
        self.consumer = self._member()
        self.producer = AIOKafkaProducer(
            bootstrap_servers=brokers,
            enable_idempotence=True,
            acks="all",
            max_request_size=2 * LIMIT,
            request_timeout_ms=500,
        )
        self.unreachable = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")

    def _member(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            bootstrap_servers=self._brokers,
            group_id=self.topic,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            heartbeat_interval_ms=100,
            # A fetch that waits for records is answered before the limit on requests.
            fetch_max_wait_ms=200,
            request_timeout_ms=500,
        )

    async def join(self) -> None:
        self.consumer.subscribe(topics=[self.topic], listener=self.rebalances)
        await self.consumer.start()

    async def rebalance(self) -> None:
        other = self._member()
        other.subscribe(topics=[self.topic])
        self._stack.push_async_callback(other.stop)
        await other.start()

    async def publish_unreadable(self, partition: int) -> None:
        """A record with a header name that is not UTF-8, which brokers take; its checksum is right."""
        batch = self.producer.create_batch()
        batch.append(key=b"key", value=b"value", timestamp=None, headers=[("AAAA", b"")])
        batch.close()
        producer = AIOKafkaProducer(bootstrap_servers=self._brokers)
        await producer.start()
        built = bytearray(batch._build())
        place = built.index(b"AAAA")
        built[place : place + 4] = b"\xff\xfe\xff\xfe"
        built[17:21] = struct.pack(">I", calc_crc32c(bytes(built[21:])))
        batch._buffer = built
        await (await producer.send_batch(batch, self.topic, partition=partition))
        await producer.stop()

    async def publish_aborted(self, partition: int) -> None:
        producer = AIOKafkaProducer(bootstrap_servers=self._brokers, transactional_id=self.topic)
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(self.topic, b"aborted", partition=partition)
        await producer.abort_transaction()
        await producer.stop()

    async def delete_before(self, partition: int, offset: int) -> None:
        client = AIOKafkaAdminClient(bootstrap_servers=self._brokers)
        await client.start()
        await client.delete_records({TopicPartition(self.topic, partition): RecordsToDelete(before_offset=offset)})
        await client.close()

    async def committed(self, partition: int) -> int | None:
        found = await self.consumer.committed(TopicPartition(self.topic, partition))
        return None if found is None else int(found)


@asynccontextmanager
async def real_clients(brokers: str) -> AsyncIterator[Real]:
    """Of a new topic, which is deleted at the end."""
    name = f"test-{secrets.token_hex(6)}"
    async with admin(KafkaSettings(bootstrap_servers=brokers)) as client:
        await client.create(name, 2, 1, {"max.message.bytes": str(LIMIT)})
    async with AsyncExitStack() as opened, started(Real(brokers, name, opened)) as made:
        yield made
    await delete(brokers, name)


@asynccontextmanager
async def memory_clients() -> AsyncIterator[InMemory]:
    async with started(InMemory()) as made:
        yield made


@asynccontextmanager
async def started(made: AnySubject) -> AsyncIterator[AnySubject]:
    await made.producer.start()
    yield made
    await made.consumer.stop()
    await made.producer.stop()


async def publish(subject: Subject, partition: int, *values: bytes) -> None:
    acknowledged = [await subject.producer.send(subject.topic, value, partition=partition) for value in values]
    await asyncio.gather(*acknowledged)


def places(subject: Subject) -> tuple[TopicPartition, TopicPartition]:
    return TopicPartition(subject.topic, 0), TopicPartition(subject.topic, 1)


async def read(subject: Subject, count: int, *tps: TopicPartition) -> list[ConsumerRecord[bytes, bytes]]:
    """The next so many records of these partitions."""
    found: list[ConsumerRecord[bytes, bytes]] = []
    async with asyncio.timeout(SECONDS):
        while len(found) < count:
            fetched = await subject.consumer.getmany(*tps, timeout_ms=SOON, max_records=count - len(found))
            found += [record for records in fetched.values() for record in records]
    return found


async def joined_at(subject: Subject, offset: int) -> tuple[TopicPartition, TopicPartition]:
    """Both partitions, sought to the offset."""
    await subject.join()
    for tp in places(subject):
        subject.consumer.seek(tp, offset)
    return places(subject)


def values(records: Iterable[ConsumerRecord[bytes, bytes]]) -> list[bytes | None]:
    return [record.value for record in records]
