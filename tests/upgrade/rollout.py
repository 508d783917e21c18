"""A rolling upgrade, a rollback and the upgrade again, while the load goes on: who runs which build when."""

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import asyncpg
from pydantic import SecretStr

from consumer.errors import ConsumerError
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import Event
from consumer.postgres import migrations
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.checker.ledger import Ledger
from tests.demo.environment import PARTITIONS, POLL_SECONDS, TRAIL, WAIT_SECONDS, Environment
from tests.demo.writers import apply_until_written, concurrent_writer
from tests.stack.broker import count_records
from tests.stack.database import APPLIED, execute
from tests.stack.process import say
from tests.stack.replica import Replica
from tests.traffic import SHORT_POLICY, Mix, Traffic
from tests.upgrade.build import Build

CHUNKS_PER_SECOND = 20
WRITES_PER_SECOND = 20
Service = Literal["ticker", "outbox"]


class RolloutError(ConsumerError):
    """The rollout cannot go on."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of everything. `hold_seconds`: how long the load goes on after each step before the next one."""

    replicas: int = 3
    events_per_second: int = 400
    hold_seconds: float = 5.0
    seed: int = 1
    forward_again: bool = True


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the rollout, by the database's clock."""

    name: str
    started: datetime
    ended: datetime


@dataclass(slots=True)
class Rollout:
    """The group, the steps it has gone through, and the exit code of every process that was stopped."""

    environment: Environment
    plan: Plan
    ledger: Ledger
    database: asyncpg.Connection
    replicas: list[Replica] = field(default_factory=list)
    services: dict[Service, Replica] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    exits: list[tuple[str, int]] = field(default_factory=list)
    schemas: list[tuple[str, str, str]] = field(default_factory=list)
    """After each `migrate`: whose it was, the schema that there should be, the schema that there is."""
    _logs: int = 0

    async def step(self, name: str, action: Awaitable[None]) -> None:
        """Does it, waits until every replica has partitions, and lets the load go on for a while."""
        started = await self._now()
        await action
        await self.until(self._is_shared, f"{name}: every replica has partitions")
        say(f"{name}: took {(await self._now() - started).total_seconds():.1f} s")
        await asyncio.sleep(self.plan.hold_seconds)
        self.steps.append(Step(name, started, await self._now()))

    async def start(self, build: Build) -> None:
        self.replicas = [await self._start(build, "run") for _ in range(self.plan.replicas)]
        for replica in self.replicas:
            await self._until_ready(replica)
        await self.serve_all(build, "ticker")

    async def replace(self, number: int, build: Build) -> None:
        """First the old process ends, then the new one starts: as with `maxSurge: 0`."""
        await self._stop(f"replica {number + 1}", self.replicas[number])
        self.replicas[number] = await self._start(build, "run")
        await self._until_ready(self.replicas[number])

    async def serve_all(self, build: Build, *services: Service) -> None:
        """Ends those that run and starts those of the build."""
        for service in services:
            await self.end(service)
        for service in services:
            self.services[service] = await self._start(build, service)
        for service in services:
            await self._until_ready(self.services[service])

    async def end(self, service: Service) -> None:
        if process := self.services.pop(service, None):
            await self._stop(service, process)

    async def migrate(self, build: Build, expected: str | None = None) -> None:
        """`expected`: the schema that there should be afterwards, if that is known."""
        code, said = await build.run(self.environment.settings, "migrate")
        if code:
            raise RolloutError(f"{build.name}: migrate ended with exit code {code}: {said.strip()}")
        if expected is not None:
            self.schemas.append((build.name, expected, await self.schema()))

    async def schema(self) -> str:
        revision: str = await self.database.fetchval("SELECT version_num FROM alembic_version")
        return revision

    async def end_all(self) -> None:
        for service in ("ticker", "outbox"):
            await self.end(service)
        for number, replica in enumerate(self.replicas, start=1):
            await self._stop(f"replica {number}", replica)

    async def kill(self) -> None:
        for process in (*self.replicas, *self.services.values()):
            await process.stop(signal.SIGKILL)

    async def _start(self, build: Build, command: str) -> Replica:
        self._logs += 1
        log = self.environment.logs / f"{self._logs:02}-{command}.log"
        return await build.replica(command, self.environment.settings, log).start()

    async def _until_ready(self, process: Replica) -> None:
        await self.until(process.ready, f"{process.log.name} is ready")

    async def _is_shared(self) -> bool:
        """Whether each replica has partitions, so that both builds do their part."""
        shares = [await replica.count("conversation_assigned_partitions") for replica in self.replicas]
        return min(shares) > 0 and sum(shares) == PARTITIONS

    async def until(self, condition: Callable[[], Awaitable[bool]], what: str) -> None:
        """Waits for it. Raises `RolloutError` if it does not come true, or a process ends by itself."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        while not await condition():
            for process in (*self.replicas, *self.services.values()):
                if process.process.returncode is not None:
                    raise RolloutError(f"{process.log.name} ended by itself:\n{process.log.read_text()[-2000:]}")
            if loop.time() > deadline:
                raise RolloutError(f"not within {WAIT_SECONDS} s: {what}")
            await asyncio.sleep(POLL_SECONDS)

    async def _stop(self, name: str, process: Replica) -> None:
        self.exits.append((f"{name}, {process.log.name}", await process.stop()))

    async def _now(self) -> datetime:
        now: datetime = await self.database.fetchval("SELECT clock_timestamp()")
        return now


async def play(rollout: Rollout, old: Build, new: Build) -> datetime:
    """Everything in its order; returns the time to which all deadlines are settled."""
    plan, new_head = rollout.plan, migrations.head()
    await rollout.migrate(old)
    await execute(rollout.environment.database, TRAIL)
    async with under_load(rollout) as traffic:
        await rollout.step(f"old replicas, schema {await rollout.schema()}", rollout.start(old))
        await rollout.step(f"migrate to {new_head}, old replicas run", rollout.migrate(new, new_head))
        async with writing(rollout):
            await upgrade(rollout, new)
            await roll_back(rollout, old, new_head)
            if plan.forward_again:
                await upgrade(rollout, new)
    return await drain(rollout, traffic, new)


async def upgrade(rollout: Rollout, new: Build) -> None:
    for number in range(rollout.plan.replicas):
        await rollout.step(f"replica {number + 1} to the new build", rollout.replace(number, new))
    await rollout.step("ticker and relay of the new build", rollout.serve_all(new, "ticker", "outbox"))


async def roll_back(rollout: Rollout, old: Build, schema: str) -> None:
    """An old build may have no relay: the transitions that it writes wait."""
    await rollout.end("outbox")
    await rollout.step(f"migrate of the old build leaves {schema}", rollout.migrate(old, schema))
    await rollout.step("ticker back to the old build, no relay", rollout.serve_all(old, "ticker"))
    for number in range(rollout.plan.replicas):
        await rollout.step(f"replica {number + 1} back to the old build", rollout.replace(number, old))


async def drain(rollout: Rollout, traffic: Traffic, new: Build) -> datetime:
    """Ticks for all, until everything is applied and published and everybody has left; the time of the ticks."""
    environment = rollout.environment
    await rollout.end("ticker")
    settled_to = datetime.now(UTC)
    async with KafkaProducer.open(environment.kafka) as producer:
        await producer.publish(environment.topic, traffic.ticks())
    if "outbox" not in rollout.services:
        await rollout.serve_all(new, "outbox")
    records = await count_records(environment.kafka, environment.topic)

    async def applied() -> bool:
        return int(await rollout.database.fetchval(APPLIED)) >= records

    async def published() -> bool:
        return not await rollout.database.fetchval("SELECT count(*) FROM transition_outbox")

    await rollout.until(applied, f"{records} records applied")
    await rollout.until(published, "every transition published")
    await rollout.end_all()
    return settled_to


@asynccontextmanager
async def under_load(rollout: Rollout) -> AsyncIterator[Traffic]:
    """Events are published evenly until the end of the block."""
    traffic, stop = Traffic(rollout.plan.seed, rollout.ledger, Mix(cold=1000)), asyncio.Event()
    async with KafkaProducer.open(rollout.environment.kafka) as producer:
        publishing = asyncio.create_task(publish(rollout, traffic, producer, stop))
        try:
            yield traffic
        finally:
            stop.set()
            await publishing


async def publish(rollout: Rollout, traffic: Traffic, producer: KafkaProducer, stop: asyncio.Event) -> None:
    chunk = max(1, rollout.plan.events_per_second // CHUNKS_PER_SECOND)
    loop = asyncio.get_running_loop()
    at = loop.time()
    while not stop.is_set():
        await producer.publish(rollout.environment.topic, traffic.records(chunk))
        at += 1 / CHUNKS_PER_SECOND
        await asyncio.sleep(max(0.0, at - loop.time()))


@asynccontextmanager
async def writing(rollout: Rollout) -> AsyncIterator[None]:
    """A program that uses the service of the new build on the same conversations until the end of the block."""
    stop, own = asyncio.Event(), Traffic(rollout.plan.seed + 1, rollout.ledger, Mix(cold=1000))
    settings = DatabaseSettings(url=SecretStr(rollout.environment.database))
    async with PostgresStore.open(settings) as store:
        service = ConversationService(store, policy=SHORT_POLICY.policy)

        async def apply(event: Event) -> None:
            await apply_until_written(service, event)
            rollout.ledger.note_written(event)
            await asyncio.sleep(1 / WRITES_PER_SECOND)

        applying = asyncio.create_task(concurrent_writer("api", apply, own, stop))
        try:
            yield
        finally:
            stop.set()
            await applying
