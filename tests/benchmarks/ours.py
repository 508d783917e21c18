"""Our replicas as an operator would run them: how fast their offsets move, and what that takes."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
import psutil

from consumer.settings import KafkaSettings
from tests.benchmarks.arena import PARTITIONS, Arena, Log
from tests.stack.database import APPLIED
from tests.stack.replica import Replica

SAMPLE_SECONDS = 0.01
LIMIT_SECONDS = 600
WARM_UP = 4000
"""Events applied before the clock starts, once the replicas have started and the conversations are made."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Seconds of CPU since their start of the replicas, PostgreSQL and Kafka, as far as they run on this machine."""

    replicas: float
    postgres: float
    kafka: float

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.replicas - other.replicas, self.postgres - other.postgres, self.kafka - other.kafka)

    def microseconds(self, events: int) -> tuple[float, float, float, float]:
        """Of CPU for each of the events: replicas, PostgreSQL, Kafka, and all three."""
        each = [1e6 * seconds / events for seconds in (self.replicas, self.postgres, self.kafka)]
        return each[0], each[1], each[2], sum(each)


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of the log, applied."""

    events: int
    seconds: float
    cpu: Usage
    wal_bytes: int
    transactions: int

    @property
    def rate(self) -> float:
        return self.events / self.seconds


@asynccontextmanager
async def replicas(
    arena: Arena, count: int, kafka: KafkaSettings, database: str, *module: str, **more: str
) -> AsyncIterator[list[Replica]]:
    """So many of ours for as long as the block lasts; raises if one does not end in good order.

    `module` with its arguments in place of the shipped one, `more` settings.
    """
    settings = {**environment(kafka, database), **more}
    logs = [arena.logs / f"replica-{number}.log" for number in range(count)]
    started = [await Replica(settings, log, *module).start() for log in logs]
    try:
        yield started
    finally:
        codes = [await replica.stop() for replica in started]
    if any(codes):
        raise RuntimeError(f"a replica ended with {codes}:\n{started[0].log.read_text()[-2000:]}")


def environment(kafka: KafkaSettings, database: str) -> Mapping[str, str]:
    return {
        "CONSUMER_DATABASE__URL": database,
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CONSUMER_KAFKA__GROUP_ID": kafka.group_id,
        "CONSUMER_KAFKA__TOPICS": kafka.topics[0],
        "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
        # A replica learns with its next heartbeat that it is to share: a third of this.
        "CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS": str(kafka.session_timeout_seconds),
        "CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS": "2",
    }


async def apply_all(arena: Arena, log: Log, database: str, count: int = 1) -> Run:
    """Has `count` replicas apply the log from its start; measured from when they share it, after the opening."""
    end = sum(log.ends.values())
    async with replicas(arena, count, log.for_a_new_group(), database) as running:
        await shared(running)
        run = await measured(database, running, sum(log.talk.values()) + WARM_UP, end)
    if run.events < log.workload.events / 4:
        raise RuntimeError(f"only {run.events} events were left when {count} replicas had started: take more")
    return run


async def shared(running: list[Replica], partitions: int = PARTITIONS) -> None:
    """Waits until each of the replicas has its share of the partitions."""
    share = {partitions / len(running)}
    while {await replica.count("conversation_assigned_partitions") for replica in running} != share:  # noqa: ASYNC110
        await asyncio.sleep(SAMPLE_SECONDS)


async def measured(database: str, running: list[Replica], start: int, end: int) -> Run:
    """Between the moments at which the stored offsets have passed `start` and `end` records."""
    connection = await asyncpg.connect(database)
    try:
        at_start = await passed(connection, start)
        cpu, wal, transactions = usage(running), await _wal(connection), await saves(running)
        began = time.monotonic()
        at_end = await passed(connection, end)
        seconds = time.monotonic() - began
        cpu, wal = usage(running) - cpu, await _wal(connection) - wal
        return Run(at_end - at_start, seconds, cpu, wal, await saves(running) - transactions)
    finally:
        await connection.close()


async def passed(connection: asyncpg.Connection, records: int, where: str = "") -> int:
    """Waits until the stored offsets come to so many records."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while (applied := int(await connection.fetchval(f"{APPLIED} {where}"))) < records:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{applied} of {records} records applied after {LIMIT_SECONDS} s")
        await asyncio.sleep(SAMPLE_SECONDS)
    return applied


def usage(running: list[Replica]) -> Usage:
    replicas = sum(_seconds(psutil.Process(replica.process.pid)) for replica in running)
    return Usage(replicas, _seconds_of("postgres"), _seconds_of("java"))


def busy_seconds() -> float:
    """Of CPU, of all processes of this machine since its start."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


def resident_bytes(replica: Replica) -> int:
    return int(psutil.Process(replica.process.pid).memory_info().rss)


def _seconds_of(name: str) -> float:
    """Of the servers that this process has started; where there are none, of all so named on this machine."""
    named = [process for process in psutil.process_iter(["name"]) if process.info["name"] == name]
    own = {process.pid for process in psutil.Process().children(recursive=True)}
    return sum(map(_seconds, [process for process in named if process.pid in own] or named))


def _seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


async def _wal(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))


async def saves(running: list[Replica]) -> int:
    """Transactions that have written events."""
    counts = [await replica.count("conversation_db_transaction_seconds_count", operation="save") for replica in running]
    return round(sum(counts))
