"""A replica: the adapter of Kafka and the workers of production, on clients in memory."""

import asyncio
from collections.abc import Awaitable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError

from consumer.kafka.errors import classified
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.producer import KafkaProducer
from consumer.kafka.source import KafkaSource
from consumer.records import Record
from consumer.settings import KafkaSettings, WorkerSettings
from consumer.worker import PartitionWorker
from tests.memory_kafka.cluster import NO_HEADERS, Headers, MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer
from tests.memory_kafka.producer import MemoryProducer
from tests.simulation.processes import METRICS, Process
from tests.simulation.topic import DEAD_LETTERS, TOPIC
from tests.simulation.world import GROUP, Fault, World

REQUEST_SECONDS = 2.0
DRAIN_SECONDS = 8.0
REBALANCE_SECONDS = 14.0
"""How long the group waits for a member to give up what it owned: the drain, and a commit that hangs."""
SETTINGS = KafkaSettings(
    group_id=GROUP,
    topics=(TOPIC,),
    dead_letter_topic=DEAD_LETTERS,
    request_timeout_seconds=REQUEST_SECONDS,
    rebalance_timeout_seconds=DRAIN_SECONDS / 0.8,
    commit_interval_seconds=5,
)


class Connection(MemoryCluster):
    """A cluster as one process reaches it: late, not at all while it stands still, or with a fault on the way."""

    def __init__(self, brokers: MemoryCluster, process: Process) -> None:
        vars(self).update(vars(brokers))
        self._process = process

    @property
    def is_up(self) -> bool:
        """Who starts while no broker answers waits: its supervisor starts it again until then."""
        return True

    async def answer(self, call: str, seconds: float = float("inf")) -> None:
        await self._process.reach(call)
        await super().answer(call, seconds)
        if call == "send" and self._process.world.strikes(Fault.NO_DEAD_LETTERS, 0.15):
            raise KafkaTimeoutError("the dead-letter topic is away")

    def append(
        self,
        tp: TopicPartition,
        value: bytes | None,
        key: bytes | None = None,
        headers: Headers = NO_HEADERS,
        timestamp: int | None = None,
    ) -> int:
        """A dead letter. It is in the log also where its acknowledgement is lost."""
        offset = super().append(tp, value, key, headers, timestamp)
        self._process.world.note_dead_letter(key, value, headers)
        if self._process.world.strikes(Fault.NO_DEAD_LETTERS, 0.15):
            raise KafkaTimeoutError("no acknowledgement of the dead letter")
        return offset


class ObservedLog:
    """The adapter's partition, with the process around it: it takes time, it may stand still, it may be at fault."""

    def __init__(self, log: AssignedPartition, process: "Replica") -> None:
        self.partition = log.partition
        self._log = log
        self._process = process
        self._world = process.world
        self._taken_at = (0, 0)

    async def cluster_id(self) -> str:
        return await self._log.cluster_id()

    async def bounds(self) -> tuple[int, int]:
        return await self._log.bounds()

    def seek(self, offset: int) -> None:
        self._log.seek(offset)

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        taken = await self._log.take(self._world.rng.randint(1, limit), seconds)
        await self._process.reach("take")
        self._taken_at = self._world.resets
        if taken:
            self._world.tell(self._process.name, f"took [{self.partition.number}] {[r.offset for r in taken]}")
        return taken

    def is_revoked(self) -> bool:
        return self._log.is_revoked()

    def applied(self, next_offset: int) -> None:
        """What goes to Kafka as committed must be in the database, but for a reset that comes in between."""
        stored = self._process.store.offsets.get(self.partition)
        if self._taken_at == self._world.resets and (stored is None or stored.next_offset < next_offset):
            self._world.failures.append(f"{self._process.name} would commit {next_offset}, stored is {stored}")
        self._log.applied(next_offset)

    def pause(self) -> None:
        self._log.pause()

    async def revoked_within(self, seconds: float) -> bool:
        await self._log.revoked_within(seconds)
        await self._process.go_on_running()
        return self._log.is_revoked()


class Replica(Process):
    """A member of the consumer group. It stays with the cluster in which it has started."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.hears = True
        self.stops = False
        self.cluster = world.kafka
        self.awaits_assignment = True
        self.owned: set[int] = set()
        self._connection = Connection(self.cluster.brokers, self)
        self._settings = WorkerSettings(
            max_batch=world.shape.max_batch,
            max_buffered=world.rng.choice((1, 5, 100)),
            outage_backoff_max_seconds=2,
            drain_seconds=DRAIN_SECONDS,
        )
        self._generation = 0
        self._membership = asyncio.Lock()
        self._opened = asyncio.Event()
        self._serving = self.spawn(self._serve())

    async def _serve(self) -> None:
        async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, self._connection)) as self._producer:
            self._source = KafkaSource(
                SETTINGS,
                self._settings,
                METRICS,
                self.health,
                self._work,
                client=self._open,
                cluster_id=self._cluster_id,
            )
            await self._source.run()

    def _open(self, **arguments: Any) -> MemoryConsumer:
        self._consumer = MemoryConsumer(self._connection, **arguments)
        self._opened.set()
        return self._consumer

    async def _cluster_id(self, _: KafkaSettings) -> str:
        with classified():
            await self._connection.answer("cluster id", REQUEST_SECONDS)
        return self.cluster.name

    def _work(self, partition: AssignedPartition) -> Awaitable[None]:
        return PartitionWorker(
            ObservedLog(partition, self),
            self.service,
            self.store,
            self._producer,
            settings=self._settings,
            metrics=METRICS,
            health=self.health,
            rng=Random(self.world.rng.random()),
        ).run()

    async def release(self) -> None:
        """A rebalance begins. The group waits for a member, but not for ever: the guard holds off who hangs."""
        self.owned = set()
        self.awaits_assignment = True
        self._generation += 1
        await asyncio.wait([self.spawn(self._revoke())], timeout=REBALANCE_SECONDS)

    async def _revoke(self) -> None:
        await self._opened.wait()
        async with self._membership:
            await self._consumer.revoke()

    def assign(self, numbers: Iterable[int]) -> None:
        """The rebalance ends. What a member is given too late, it does not get."""
        self.owned = set(numbers)
        self.awaits_assignment = False
        self.spawn(self._assign(self._generation))

    async def _assign(self, generation: int) -> None:
        await self._opened.wait()
        async with self._membership:
            if generation == self._generation:
                await self._consumer.assign(*(TopicPartition(TOPIC, number) for number in sorted(self.owned)))
                self.world.failures += [f"{self.name}: a listener raised {e!r}" for e in self._consumer.listener_errors]

    async def stop(self) -> None:
        """As by SIGTERM: what is still busy at the end of the drain is killed."""
        self.stops = True
        self.hears = False
        self.owned = set()
        if self._opened.is_set():
            self._source.stop()
            await asyncio.wait([self._serving], timeout=REBALANCE_SECONDS)
        self.crash()
