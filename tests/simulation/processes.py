"""The processes of a schedule: tickers, relays, other writers; production code on fake ports. Any may die."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextvars import copy_context
from random import Random
from typing import Any

from consumer.errors import ConcurrencyError, ConnectionLostError, UnavailableError
from consumer.kafka.placement import home_of
from consumer.lifecycle.model import Event
from consumer.observability.health import Health
from consumer.observability.lag import Lag
from consumer.observability.metrics import Metrics
from consumer.outbox import OutboxRelay
from consumer.service.service import ConversationService
from consumer.settings import OutboxSettings, TickerSettings
from consumer.ticker import Ticker
from tests.checker.ledger import key_of
from tests.fakes import MemoryStore
from tests.simulation.loop import OWNED, Tasks
from tests.simulation.topic import TOPIC
from tests.simulation.world import Fault, World
from tests.traffic import SHORT_POLICY, Traffic


class SharedMetrics(Metrics):
    """Of all schedules: what they have reached. What a replica is like at the moment is nobody's business here."""

    def watch_lag(self, read: Callable[[], Iterable[Lag]]) -> None:
        return


METRICS = SharedMetrics([TOPIC])
IDLE_IN_TRANSACTION_SECONDS = 5.0


class Process:
    """Stands still while it is stalled; what it holds in the database ends with it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.health = Health()
        self.store = MemoryStore(world.database, self.statement, world.shape.few)
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
        self._tasks: Tasks = {}

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs it in the process: the tasks that it creates are the process's too."""
        context = copy_context()
        context.run(OWNED.set, self._tasks)
        return asyncio.create_task(self._watched(work), context=context)

    async def _watched(self, work: Coroutine[Any, Any, None]) -> None:
        """What ends by an error breaks the schedule: "nobody fails"."""
        try:
            await work
        except Exception as error:
            self.world.failures.append(f"{self.name} ended by {error!r}")

    async def reach(self, what: str) -> None:
        """Before anything that leaves the process."""
        await self.world.latency()
        await self.go_on_running()
        if not self.alive:
            raise asyncio.CancelledError  # a task may have swallowed the one of the crash
        self.world.tell(self.name, what)

    async def go_on_running(self) -> None:
        """Returns at once unless the process stands still."""
        await self._running.wait()

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
        for task in list(self._tasks):
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


class TickerProcess(Process):
    """The reference ticker, and the topic that its ticks are published to."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name)
        settings = TickerSettings(interval_seconds=3, batch=world.rng.choice((1, 3, 100)), max_unacknowledged=3)
        self._ticker = Ticker(self.store, self, settings, METRICS, self.health)
        self.spawn(self._ticker.run())

    async def partitions(self) -> int:
        return self.world.shape.partitions

    def partition_of(self, key: bytes, partitions: int) -> int:
        return home_of(key, partitions)

    async def publish(self, partition: int, ticks: Sequence[tuple[bytes, bytes]]) -> None:
        for key, value in ticks:
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
