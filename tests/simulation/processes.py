"""The processes of a schedule: replicas, tickers, other writers; production code on fake ports. Any may die."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import suppress
from random import Random
from typing import Any

from consumer.errors import ConcurrencyError, ConnectionLostError, PartitionStoppedError, UnavailableError
from consumer.lifecycle.model import Event
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.outbox import OutboxRelay
from consumer.records import DeadLetter, Record
from consumer.service.service import ConversationService
from consumer.settings import OutboxSettings, TickerSettings, WorkerSettings
from consumer.ticker import Ticker
from consumer.worker import PartitionWorker
from tests.checker.verdicts import key_of
from tests.fakes import MemoryStore
from tests.simulation.world import GROUP, TOPIC, Fault, World
from tests.traffic import SHORT_POLICY, Traffic

METRICS = Metrics([TOPIC])
"""Of all schedules: what they have reached."""
DRAIN_SECONDS = 8.0
IDLE_IN_TRANSACTION_SECONDS = 5.0


class Process:
    """Stands still while it is stalled; what it holds in the database ends with it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.health = Health()
        self.store = MemoryStore(world.database, self.statement)
        self.service = ConversationService(
            self.store,
            policy=SHORT_POLICY.policy,
            metrics=METRICS,
            writers=world.shape.writers,
            rng=Random(world.rng.random()),
        )
        self._rewinds = world.rewinds
        self._running = asyncio.Event()
        self._running.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(self._watched(work))
        self._tasks.add(task)
        return task

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """What ends by an error breaks the schedule: "nobody fails"."""
        try:
            await work
        except Exception as error:
            self.world.failures.append(f"{self.name} ended by {error!r}")

    async def reach(self, what: str) -> None:
        """Before anything that leaves the process."""
        await self.world.latency()
        await self._running.wait()
        if not self.alive:
            await asyncio.Event().wait()
        self.world.tell(self.name, what)

    async def statement(self, what: str) -> None:
        await self.reach(what)
        if self._rewinds != self.world.rewinds:
            self._rewinds = self.world.rewinds
            if self.world.rng.random() < 0.6:  # else another has found out, and all connections are new
                raise ConnectionLostError("the server has gone")
        if self.world.strikes(Fault.CRASH_IN_A_STATEMENT, 0.002):
            self.crash()
        self.world.trouble_database(self.name, what)

    def crash(self) -> None:
        """As by SIGKILL: nothing that it would do next happens, and the server sees its connections close."""
        self.world.tell(self.name, "CRASHES")
        self.alive = False
        self._end_transactions()
        for task in self._tasks:
            task.cancel()

    def stall(self) -> None:
        """As by SIGSTOP. The server ends transactions that stay idle for too long."""
        self.world.tell(self.name, "STALLS")
        self._running.clear()
        asyncio.get_running_loop().call_later(IDLE_IN_TRANSACTION_SECONDS, self._end_idle_transactions)

    def _end_idle_transactions(self) -> None:
        if not self._running.is_set():
            self._end_transactions()

    def _end_transactions(self) -> None:
        for transaction in self.store.open:
            transaction.kill()

    def go_on(self) -> None:
        self._running.set()

    async def wait(self, event: asyncio.Event, seconds: float) -> bool:
        """Whether the event came in time, as the process sees it."""
        with suppress(TimeoutError):
            await asyncio.wait_for(event.wait(), seconds)
        await self._running.wait()
        return event.is_set()


class SimulatedLog:
    """See `worker.PartitionLog`: a partition, from its assignment until the process hears of its revocation."""

    def __init__(self, process: Process, number: int) -> None:
        self.partition = Partition(GROUP, TOPIC, number)
        self._process = process
        self._world = process.world
        self._cluster = self._world.kafka  # who has not heard of another one stays with it
        self._records = self._cluster.partitions[number]
        self._position = 0
        self._taken_at = (0, 0)
        self._news, self._revoked = asyncio.Event(), asyncio.Event()
        self._world.listeners.append(self._news)

    async def cluster_id(self) -> str:
        await self._process.reach("cluster id")
        self._world.reach_kafka()
        return self._cluster.name

    async def bounds(self) -> tuple[int, int]:
        await self._process.reach("bounds")
        self._world.reach_kafka()
        return self._records.first, self._records.end

    def seek(self, offset: int) -> None:
        self._position = offset

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        await self._process.reach("take")
        if not self._revoked.is_set() and not self._next():
            self._news.clear()
            await self._process.wait(self._news, seconds)
        if not self._revoked.is_set() and self._position < self._records.first and not self._world.kafka_is_away:
            raise PartitionStoppedError("the next record is no longer in the log")
        if self._revoked.is_set() or not (records := self._next()):
            return ()
        taken = records[: self._world.rng.randint(1, limit)]
        self._position = taken[-1].offset + 1
        self._taken_at = self._world.rewinds, self._world.offsets_set
        self._world.tell(self._process.name, f"took [{self.partition.number}] {[r.offset for r in taken]}")
        return taken

    def _next(self) -> Sequence[Record]:
        if self._world.kafka_is_away or self._position < self._records.first:
            return ()
        return self._records.since(self._position)

    def is_revoked(self) -> bool:
        return self._revoked.is_set()

    def applied(self, next_offset: int) -> None:
        """What goes to Kafka as committed must be in the database, but for a rewind or a set that comes in between."""
        stored = self._process.store.offsets.get(self.partition)
        now = self._world.rewinds, self._world.offsets_set
        if self._taken_at == now and (stored is None or stored.next_offset < next_offset):
            self._world.failures.append(f"{self._process.name} would commit {next_offset}, stored is {stored}")

    def pause(self) -> None:
        pass

    async def revoked_within(self, seconds: float) -> bool:
        return await self._process.wait(self._revoked, seconds)

    def revoke(self) -> None:
        self._revoked.set()
        self._news.set()
        self._world.listeners.remove(self._news)


class Replica(Process):
    """A member of the consumer group."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        self.hears = True
        self._owned: list[tuple[SimulatedLog, asyncio.Task[None]]] = []

    def assign(self, numbers: Iterable[int]) -> None:
        settings = WorkerSettings(max_batch=self.world.shape.max_batch, outage_backoff_max_seconds=2)
        for number in numbers:
            source = SimulatedLog(self, number)
            worker = PartitionWorker(
                source,
                self.service,
                self.store,
                self,
                settings=settings,
                metrics=METRICS,
                health=self.health,
                rng=Random(self.world.rng.random()),
            )
            self._owned.append((source, self.spawn(worker.run())))

    @property
    def owned(self) -> set[int]:
        return {source.partition.number for source, _ in self._owned}

    async def release(self) -> None:
        """Gives all partitions up and waits for the workers, but not for ever: the guard holds off who hangs."""
        owned, self._owned = self._owned, []
        for source, _ in owned:
            source.revoke()
        if owned:
            await asyncio.wait([task for _, task in owned], timeout=DRAIN_SECONDS)

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """See `worker.DeadLetters`."""
        await self.reach("dead letters")
        await self.world.dead_letter(letters)


class TickerProcess(Process):
    """The reference ticker."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        settings = TickerSettings(interval_seconds=3, batch=world.rng.choice((1, 3, 100)), max_unacknowledged=3)
        self._ticker = Ticker(self.store, self._emit, settings, METRICS, self.health)
        self.spawn(self._ticker.run())

    async def _emit(self, key: bytes, value: bytes) -> None:
        await self.reach("emit")
        self.world.reach_kafka()
        lost = self.world.strikes(Fault.LOST_TICK, 0.2)
        if not lost or self.world.rng.random() < 0.5:
            self.world.append(key, value)
        if lost:
            raise UnavailableError("no acknowledgement of the tick")


class RelayProcess(Process):
    """An outbox relay."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        settings = OutboxSettings(
            batch=world.rng.choice((1, 3, 100)), interval_seconds=4, turn_seconds=IDLE_IN_TRANSACTION_SECONDS
        )
        self._relay = OutboxRelay(
            self.store,
            self._publish,
            settings=settings,
            metrics=METRICS,
            health=self.health,
            rng=Random(world.rng.random()),
        )
        self.spawn(self._relay.run())

    async def _publish(self, records: Sequence[tuple[bytes, bytes]]) -> None:
        for _, value in records:
            await self.reach("publish")
            await self.world.publish_transition(value)


class OtherWriter(Process):
    """A program that writes through the service, and calls again until it knows that it has written."""

    def __init__(self, world: World, name: str, traffic: Traffic, log: Traffic) -> None:
        super().__init__(world, name)
        self._traffic = traffic
        self._log = log
        self.spawn(self._run())

    async def _run(self) -> None:
        while not self.world.healed:
            await asyncio.sleep(self.world.rng.expovariate(1))
            events = [self._next() for _ in range(self.world.rng.randint(1, 3))]
            self.world.ledger.unsure.update(map(key_of, events))
            rewinds = self.world.rewinds
            await self._insist(events)
            self.world.struck[Fault.OTHER_WRITER] += 1
            for event in events if rewinds == self.world.rewinds else ():
                self.world.ledger.note_written(event)

    def _next(self) -> Event:
        """Its own event, or one that the log has got as well."""
        own = self._traffic.event(self.world.rng.choice(self._traffic.cold), self.name)
        return (self._log.recent() or own) if self.world.rng.random() < 0.2 else own

    async def _insist(self, events: Sequence[Event]) -> None:
        while True:
            try:
                await self.service.apply(events)
            except (UnavailableError, ConcurrencyError):
                await asyncio.sleep(self.world.rng.expovariate(1))
            else:
                return
