"""Latency of an event, from the broker's append to PostgreSQL's commit, and what a day at that pace costs.

Both ends are read after the run, so nobody listens while it lasts, and every event counts. The broker's time is cut to
the millisecond: a latency is up to 1 ms too long, 0.5 ms on average, and never too short. PostgreSQL takes the time of
a commit just before it flushes the WAL. The mean time of a flush is added to each latency.
"""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from statistics import quantiles

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.settings import KafkaSettings
from tests.benchmarks.arena import Arena, fetch, fill
from tests.benchmarks.ours import Usage, busy_seconds, passed, replicas, saves, shared, usage
from tests.benchmarks.report import table
from tests.benchmarks.sender import READY, Errand, Sent
from tests.benchmarks.workload import PACE, Workload
from tests.stack.database import APPLIED, connected, set_for_database
from tests.stack.process import DevstackError
from tests.stack.replica import Replica

CONVERSATIONS = 2000
WARM_UP_SECONDS = 5
"""Of the same pace, before what counts: Kafka compiles its code for small requests meanwhile."""
OLDEST_POSTGRES = 180_000
NEEDED = """latency is measured by PostgreSQL's own commit times: start the server that DEVSTACK_POSTGRES names with
track_commit_timestamp = on, and take version 18 or newer"""
COMMITS = "SELECT event_id, pg_xact_commit_timestamp(xmin) FROM conversation_event"
PACE_HEADING = ("events/s", "partitions")
FLUSHES = """
    SELECT coalesce(sum(fsyncs), 0), coalesce(sum(fsync_time + write_time), 0) / 1000 FROM pg_stat_io
    WHERE object = 'wal' AND backend_type = 'client backend'"""


class NotMeasurableError(DevstackError):
    """The services lack what a part needs; the message says what to set."""


@dataclass(frozen=True, slots=True)
class Pace:
    """So many events a second on so many partitions. `settings` of the replica, by their variables."""

    per_second: int
    partitions: int
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def cells(self) -> tuple[str, str]:
        settings = "".join(f", {name}={value}" for name, value in self.settings.items())
        return f"{self.per_second:,}{settings}", str(self.partitions)


@dataclass(frozen=True, slots=True)
class Flushes:
    """Flushes of the WAL by those who commit, and the seconds that they took."""

    count: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What `events` took together. `others`: cores that were busy with what is no part of it, the sender among them."""

    events: int
    transactions: int
    cpu: Usage
    others: float
    sent: Sent


@dataclass(frozen=True, slots=True)
class Latency:
    """A run at `pace`: `seconds` by event, of them `flush_seconds` for the flush of the WAL."""

    pace: Pace
    seconds: list[float]
    flush_seconds: float
    cost: Cost

    @property
    def summary(self) -> str:
        rate, partitions = self.pace.cells
        late = 1000 * self.cost.sent.latest_seconds
        return (
            f"{rate}/s on {partitions}: p50 {self.percentile(50):.1f} ms, p99 {self.percentile(99):.1f} ms; "
            f"sender late by {late:.0f} ms at most; others keep {self.cost.others:.2f} cores busy"
        )

    def percentile(self, percent: int) -> float:
        """In milliseconds."""
        return quantiles(self.seconds, n=100)[percent - 1] * 1000


def latency_table(runs: Sequence[Latency]) -> list[list[str]]:
    rows = []
    for run in runs:
        of_events = (run.percentile(50), run.percentile(99), 1000 * max(run.seconds))
        milliseconds = (f"{one:.1f}" for one in of_events)
        rows.append((*run.pace.cells, *milliseconds, f"{1000 * run.flush_seconds:.2f}"))
    return table((*PACE_HEADING, "p50 ms", "p99", "highest", "of it a WAL flush"), *rows)


def cost_table(runs: Sequence[Latency]) -> list[list[str]]:
    rows = []
    for run in runs:
        cost, sent = run.cost, run.cost.sent
        microseconds = (*cost.cpu.microseconds(cost.events), 1e6 * sent.cpu_seconds / sent.events)
        together = f"{cost.events / cost.transactions:.1f}"
        rows.append((*run.pace.cells, together, *(f"{one:,.0f}" for one in microseconds)))
    heading = ("events a transaction", "CPU µs an event: replica", "PostgreSQL", "Kafka", "machine")
    return table((*PACE_HEADING, *heading, "sender, not counted"), *rows)


async def measure_latency(arena: Arena, pace: Pace, seconds: float, *module: str) -> Latency:
    """One replica at that pace, or `module` with its arguments in its place. Raises `NotMeasurableError`."""
    await check_commit_times(arena.services.postgres)
    workload = Workload(CONVERSATIONS, round(pace.per_second * (WARM_UP_SECONDS + seconds)))
    configs = {"message.timestamp.type": "LogAppendTime"}
    async with arena.topic(configs, pace.partitions) as kafka, arena.database() as database:
        await set_for_database(database, "track_wal_io_timing=on")
        starting = datetime.now(UTC) - workload.total * PACE
        await fill(kafka, islice(workload.all(starting), workload.opening))
        before = await _flushes(database)
        async with (
            _sender(kafka, workload, starting, pace) as sender,
            replicas(arena, 1, kafka, database, *module, **pace.settings) as running,
            connected(database) as connection,
        ):
            await shared(running, pace.partitions)
            await passed(connection, workload.opening)
            cost = await _paced(running, connection, workload, sender)
        after = await _flushes(database)
        appended = await append_times(kafka, pace.partitions)
        committed = await commit_times(database)
    flush = (after.seconds - before.seconds) / max(after.count - before.count, 1)
    measured = dict(list(appended.items())[workload.opening + pace.per_second * WARM_UP_SECONDS :])
    return Latency(pace, latencies(measured, committed, flush), flush, cost)


async def check_commit_times(postgres: str) -> None:
    """Raises `NotMeasurableError` where the server keeps none."""
    asked = "SELECT current_setting('track_commit_timestamp')::bool, current_setting('server_version_num')::int"
    ((tracks, version),) = await fetch(postgres, asked)
    if not tracks or int(str(version)) < OLDEST_POSTGRES:
        raise NotMeasurableError(NEEDED)


def latencies(appended: dict[str, datetime], committed: dict[str, datetime], flush_seconds: float) -> list[float]:
    """In seconds, by event id. Raises `KeyError` for an event that was not committed."""
    return [(committed[event_id] - at).total_seconds() + flush_seconds for event_id, at in appended.items()]


async def commit_times(database: str) -> dict[str, datetime]:
    """Id of each event -> when PostgreSQL committed it, just before its WAL was flushed."""
    return {str(event_id): at for event_id, at in await fetch(database, COMMITS) if isinstance(at, datetime)}


async def append_times(kafka: KafkaSettings, partitions: int) -> dict[str, datetime]:
    """Id of each event of the topic, in their order -> when the broker appended it, cut to the millisecond."""
    places = [TopicPartition(kafka.topics[0], number) for number in range(partitions)]
    client = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, enable_auto_commit=False)
    appended: dict[str, datetime] = {}
    await client.start()
    try:
        client.assign(places)
        await client.seek_to_beginning(*places)
        left = sum((await client.end_offsets(places)).values())
        while left:
            for records in (await client.getmany(timeout_ms=1000)).values():
                left -= len(records)
                for record in records:
                    appended[json.loads(record.value)["id"]] = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    finally:
        await client.stop()
    return dict(sorted(appended.items()))


@asynccontextmanager
async def _sender(
    kafka: KafkaSettings, workload: Workload, starting: datetime, pace: Pace
) -> AsyncIterator[asyncio.subprocess.Process]:
    errand = Errand(
        kafka=kafka.bootstrap_servers,
        topic=kafka.topics[0],
        conversations=workload.conversations,
        events=workload.events,
        starting=starting,
        per_second=pace.per_second,
    )
    command = (sys.executable, "-m", "tests.benchmarks.sender", errand.model_dump_json())
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _paced(
    running: list[Replica], connection: asyncpg.Connection, workload: Workload, sender: asyncio.subprocess.Process
) -> Cost:
    """From the end of the warm-up to the last commit."""
    assert sender.stdin is not None
    assert sender.stdout is not None
    if (line := await sender.stdout.readline()).strip().decode() != READY:
        raise RuntimeError(f"the sender is not ready: {line!r}")
    sender.stdin.write(b"\n")
    await asyncio.sleep(WARM_UP_SECONDS)
    before, start = await saves(running), await connection.fetchval(APPLIED)
    cpu, busy, began = usage(running), busy_seconds(), time.monotonic()
    sent = Sent.model_validate_json(await sender.stdout.readline())
    end = await passed(connection, workload.total)
    cpu = usage(running) - cpu
    others = (busy_seconds() - busy - cpu.replicas - cpu.postgres - cpu.kafka) / (time.monotonic() - began)
    return Cost(end - int(start), await saves(running) - before, cpu, others, sent)


async def _flushes(database: str) -> Flushes:
    ((count, seconds),) = await fetch(database, FLUSHES)
    return Flushes(int(str(count)), float(str(seconds)))
