"""What a ticker costs: many deadlines that have passed at once, and conversations whose deadlines are yet to come."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import asyncpg
import psutil

from consumer.observability.metrics import total
from consumer.settings import KafkaSettings
from tests.benchmarks.arena import Arena
from tests.benchmarks.ours import Usage, environment, resident_bytes, usage
from tests.stack.database import execute
from tests.stack.replica import Replica

OPEN = """
    INSERT INTO conversation (conversation_id, version, session, status, opened_at, accepted_at, accepted_by,
        last_activity_at, last_agent_message_at, user_messages, agent_messages, idle_at, expires_at, wake_at)
    SELECT 'thread-' || lpad(n::text, 8, '0'), 1, 1, 'progress', at, at, 'agent', at, at, 0, 1,
        at + interval '15 min', at + interval '24 h', at + interval '15 min'
    FROM (SELECT n, now() + {deadline} - interval '15 min' AS at FROM generate_series(1, {count}) AS n) AS t"""
PASSED = "interval '1 h' * (random() - 2)"
"""So long ago that no timer is due a second time within a run."""
AHEAD = "interval '15 min' * (1 - random() / 4)"
"""As near as deadlines can be that do not pass within a run: the most that counting overdue ones may have to read."""
TICKS = "conversation_ticks_total"
POLL_SECONDS = 0.05
LIMIT_SECONDS = 600
SETTLING_SECONDS = 5.0
"""From the start of a ticker, or a checkpoint, until only what lasts is left."""


@dataclass(frozen=True, slots=True)
class Due:
    """Conversations that were due at once, from the first ticks that were seen to the last one.

    Ticks that have failed come again after a quarter of an hour: they are not waited for.
    """

    ticks: int
    failed: int
    seconds: float
    cpu: Usage
    highest_bytes: int

    @property
    def rate(self) -> float:
        return self.ticks / self.seconds


@asynccontextmanager
async def open_conversations(arena: Arena, count: int, deadline: str) -> AsyncIterator[str]:
    """A database with so many conversations, their deadlines at an interval from now."""
    async with arena.database() as database:
        await execute(database, OPEN.format(count=count, deadline=deadline))
        await execute(database, "VACUUM ANALYZE conversation")
        await execute(database, "CHECKPOINT")
        yield database


@asynccontextmanager
async def ticker(arena: Arena, kafka: KafkaSettings, database: str) -> AsyncIterator[Replica]:
    """A ticker; raises if it does not end in good order."""
    started = await Replica(environment(kafka, database), arena.logs / "ticker.log", "consumer", "ticker").start()
    try:
        yield started
    finally:
        code = await started.stop()
        if code:
            raise RuntimeError(f"the ticker ended with {code}:\n{started.log.read_text()[-2000:]}")


async def due(arena: Arena, conversations: int) -> Due:
    async with (
        arena.topic() as kafka,
        open_conversations(arena, conversations, PASSED) as database,
        ticker(arena, kafka, database) as running,
    ):
        server = await _server(database)
        first = await _ticks(running, 1)
        cpu, began, highest, ticks = _usage(running, server), time.monotonic(), 0, first
        while sum(ticks) < conversations:
            if time.monotonic() > began + LIMIT_SECONDS:
                raise TimeoutError(f"{ticks} of {conversations} ticks emitted, failed after {LIMIT_SECONDS} s")
            await asyncio.sleep(POLL_SECONDS)
            highest = max(highest, resident_bytes(running))
            ticks = await _ticks(running)
        seconds = time.monotonic() - began
        return Due(ticks[0] - first[0], ticks[1], seconds, _usage(running, server) - cpu, highest)


async def _ticks(running: Replica, least: int = 0) -> tuple[int, int]:
    """Waits until so many ticks are emitted, or have failed; both numbers."""
    while running.process.returncode is None:
        samples = await running.metrics()
        emitted, failed = (round(total(samples, TICKS, result=result)) for result in ("emitted", "failed"))
        if emitted + failed >= least:
            return emitted, failed
        await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError("the ticker ended early")


@dataclass(frozen=True, slots=True)
class Idle:
    """What a ticker takes while nothing is due, and PostgreSQL for it: shares of a core."""

    ticker: float
    postgres: float

    @property
    def core(self) -> float:
        return self.ticker + self.postgres


async def idle(arena: Arena, conversations: int, seconds: float) -> Idle:
    async with (
        arena.topic() as kafka,
        open_conversations(arena, conversations, AHEAD) as database,
        ticker(arena, kafka, database) as running,
    ):
        while not await running.ready():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_SECONDS)
        await asyncio.sleep(SETTLING_SECONDS)
        server = await _server(database)
        cpu, began = _usage(running, server), time.monotonic()
        await asyncio.sleep(seconds)
        took, cpu = time.monotonic() - began, _usage(running, server) - cpu
        return Idle(cpu.replicas / took, cpu.postgres / took)


async def _server(database: str) -> psutil.Process:
    """PostgreSQL's first process, where it runs on this machine."""
    connection = await asyncpg.connect(database)
    server = psutil.Process(await connection.fetchval("SELECT pg_backend_pid()")).parent()
    await connection.close()
    assert server is not None
    return server


def _usage(running: Replica, server: psutil.Process) -> Usage:
    """As `ours.usage`; of PostgreSQL, this server alone."""
    return replace(usage([running]), postgres=_with_children(server))


def _with_children(server: psutil.Process) -> float:
    """Seconds of CPU of a server and of its sessions, those that have ended too."""
    own = server.cpu_times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in server.children():
        times = child.cpu_times()
        total += times.user + times.system
    return float(total)
