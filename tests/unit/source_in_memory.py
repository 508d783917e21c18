"""A source over a client in memory, in a group that a test controls."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from aiokafka import TopicPartition

from consumer.errors import PartitionStoppedError
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.source import KafkaSource
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics, Part
from consumer.settings import KafkaSettings, WorkerSettings
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer

LONG = 1000.0
KAFKA = KafkaSettings(group_id="group", topics=("events",), rebalance_timeout_seconds=30, commit_interval_seconds=1)
WORKER = WorkerSettings(max_buffered=4, drain_seconds=20)
PLACES = [TopicPartition("events", number) for number in range(3)]
UNREADABLE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


Worker = Callable[["Group", AssignedPartition], Awaitable[None]]


class Group:
    """A source in a group that a test controls, with workers that apply what they get at once."""

    def __init__(self, worker: Worker, client: type[MemoryConsumer], settings: WorkerSettings) -> None:
        self.cluster = MemoryCluster()
        self.cluster.create("events", len(PLACES))
        self.health = Health()
        self.metrics = Metrics(KAFKA.topics, parts=Part.REPLICA)
        self.assigned: dict[TopicPartition, AssignedPartition] = {}
        self.values: defaultdict[TopicPartition, list[bytes | None]] = defaultdict(list)
        self.stopped: dict[TopicPartition, str] = {}
        self.source = KafkaSource(
            KAFKA,
            settings,
            self.metrics,
            self.health,
            partial(worker, self),
            client=partial(client, self.cluster),
            cluster_id=self.cluster.id,
        )
        self.running = asyncio.create_task(self.source.run())

    @property
    def client(self) -> MemoryConsumer:
        return self.cluster.consumers[-1]

    async def assign(self, *tps: TopicPartition) -> None:
        await asyncio.sleep(0)
        await self.client.assign(*tps)

    def publish(self, tp: TopicPartition, *values: bytes) -> None:
        for value in values:
            self.cluster.append(tp, value)

    def committed(self, tp: TopicPartition) -> int | None:
        return self.cluster.committed.get(("group", tp))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def stop(self) -> None:
        self.source.stop()
        await self.running


def slow(seconds: float) -> Worker:
    """A worker that takes one record, and so long to apply it once its partition is given up."""

    async def work(group: "Group", partition: AssignedPartition) -> None:
        partition.seek(0)
        (record,) = await partition.take(1, LONG)
        await partition.revoked_within(LONG)
        await asyncio.sleep(seconds)
        partition.applied(record.offset + 1)

    return work


async def apply_all(group: Group, partition: AssignedPartition) -> None:
    """A worker without a database: goes on at the first offset."""
    tp = TopicPartition(partition.partition.topic, partition.partition.number)
    group.assigned[tp] = partition
    partition.seek(group.committed(tp) or 0)
    try:
        while not partition.is_revoked():
            if records := await partition.take(100, LONG):
                group.values[tp] += [record.value for record in records]
                partition.applied(records[-1].offset + 1)
    except PartitionStoppedError as error:
        group.stopped[tp] = str(error)


@asynccontextmanager
async def grouped(
    *tps: TopicPartition,
    worker: Worker = apply_all,
    client: type[MemoryConsumer] = MemoryConsumer,
    settings: WorkerSettings = WORKER,
) -> AsyncIterator[Group]:
    """A source with these partitions, which is stopped at the end."""
    group = Group(worker, client, settings)
    await group.assign(*tps)
    try:
        yield group
    finally:
        group.cluster.heal()
        group.source.stop()
        await asyncio.wait([group.running])


def now() -> float:
    return asyncio.get_running_loop().time()
