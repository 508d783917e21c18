"""Ours under conditions: grown, skewed, contended, behind by a million."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import asyncpg
from pydantic import SecretStr

from consumer.lifecycle.model import Author, Message
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.benchmarks.arena import Arena, Log, fetch
from tests.benchmarks.ours import Run, apply_all, passed, replicas, resident_bytes
from tests.demo.writers import apply_until_written
from tests.stack.database import APPLIED, execute, set_for_database

DORMANT = """
    INSERT INTO conversation (conversation_id, version, session, status, opened_at, accepted_at, accepted_by,
        last_activity_at, last_agent_message_at, user_messages, agent_messages, idle_at, expires_at, wake_at)
    SELECT 'thread-' || lpad(n::text, 8, '0'), 1, 1, 'progress', at, at, 'agent', at, at, 0, 1,
        at + interval '15 min', at + interval '24 h', at + interval '15 min'
    FROM generate_series(0, {last}) AS n, (SELECT now() - interval '2 min' AS at) AS t;
    INSERT INTO conversation_event
    SELECT conversation_id, 'whatsapp:15550001111', 'opening', 1, 1, 'inbound-message', opened_at, opened_at,
        'applied', 'agent', null, 'progress', 'agent', null FROM conversation"""
HOT = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'conversation'"
"""Each connection adds what it has done when it ends, at the latest."""
WRITERS = 8
CONTENDED = 10
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Grown:
    """Throughput on a grown table, and the updates that needed no new index entries."""

    run: Run
    updates: int
    hot: int

    @property
    def cells(self) -> tuple[str, ...]:
        run = self.run
        cpu = f"{1e6 * run.cpu.replicas / run.events:.1f}, {1e6 * run.cpu.postgres / run.events:.1f}"
        wal = f"{run.wal_bytes / run.events:,.0f}"
        return f"{run.rate:,.0f}", cpu, wal, f"{self.updates:,}", f"{self.hot / self.updates:.0%}"


@asynccontextmanager
async def grown(arena: Arena, conversations: int) -> AsyncIterator[str]:
    """A database with that many open conversations and their history."""
    async with arena.database() as database:
        await execute(database, DORMANT.format(last=conversations - 1))
        await execute(database, "VACUUM ANALYZE conversation")
        await execute(database, "VACUUM ANALYZE conversation_event")
        await execute(database, "CHECKPOINT")
        yield database


async def on_a_grown_table(arena: Arena, log: Log, template: str, setting: str | None = None) -> Grown:
    """The talk of `log` on a copy of it, whose connections have this setting of the server's, as `name=value`."""
    async with arena.database(template) as database:
        if setting:
            await set_for_database(database, setting)
        return await applied_to(arena, log, database)


async def applied_to(arena: Arena, log: Log, database: str) -> Grown:
    run = await apply_all(arena, log, database)
    ((updates, hot),) = await fetch(database, HOT)
    return Grown(run, int(str(updates)), int(str(hot)))


async def contended(arena: Arena, log: Log, *, on_ours: bool) -> Run:
    """With outside writers as fast as they can, on a few rows: of the log's conversations, or of their own."""
    async with arena.database() as database, AsyncExitStack() as stack:
        writing = [
            asyncio.create_task(_write(await stack.enter_async_context(_writer(database)), str(number), on_ours))
            for number in range(WRITERS)
        ]
        try:
            return await apply_all(arena, log, database)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)


@asynccontextmanager
async def _writer(database: str) -> AsyncIterator[ConversationService]:
    async with PostgresStore.open(DatabaseSettings(url=SecretStr(database), writers=1)) as store:
        yield ConversationService(store)


async def _write(service: ConversationService, name: str, on_ours: bool) -> None:
    count = 0
    while True:
        count += 1
        key = f"{'thread' if on_ours else 'aside'}-{count % CONTENDED:08}"
        await apply_until_written(
            service, Message(key, f"writer-{name}", f"{name}-{count}", datetime.now(UTC), Author.AGENT)
        )


@dataclass(frozen=True, slots=True)
class Held:
    """The partitions of one run: seconds that those took where nobody held a row, and what became of the other."""

    others_seconds: float
    stalled: int
    stalled_records: int


async def with_a_held_row(arena: Arena, log: Log, *, held: bool) -> Held:
    """An outsider holds one row's lock, or does not, while the log is applied."""
    async with arena.database() as database, AsyncExitStack() as stack:
        await stack.enter_async_context(replicas(arena, 1, log.for_a_new_group(), database))
        connection = await asyncpg.connect(database)
        stack.push_async_callback(connection.close)
        await passed(connection, sum(log.talk.values()))
        place = await connection.fetchval("SELECT partition FROM kafka_offset ORDER BY partition LIMIT 1")
        if held:
            place = await _hold(stack, database, log)
        where = f"WHERE partition <> {place}"
        end = sum(log.ends.values()) - log.ends[place]
        began, start = time.monotonic(), await passed(connection, 0, where)
        await passed(connection, end, where)
        seconds = (time.monotonic() - began) * end / (end - start)
        stored = int(await connection.fetchval(f"{APPLIED} WHERE partition = {place}"))
        return Held(seconds, place, log.ends[place] - stored)


async def _hold(stack: AsyncExitStack, database: str, log: Log) -> int:
    """Locks the row of the first conversation until the stack ends; the partition that it is on."""
    connection = await asyncpg.connect(database)
    stack.push_async_callback(connection.close)
    await connection.execute("BEGIN")
    await connection.execute("SELECT 1 FROM conversation WHERE conversation_id = 'thread-00000000' FOR UPDATE")
    return log.place_of("thread-00000000")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory of a replica while it works off a backlog, in MiB."""

    backlog: int
    highest: float
    first_half: float
    second_half: float


async def memory(arena: Arena, log: Log) -> Memory:
    end = sum(log.ends.values())
    samples: list[tuple[int, float]] = []
    async with arena.database() as database, replicas(arena, 1, log.for_a_new_group(), database) as (replica,):
        connection = await asyncpg.connect(database)
        while (applied := int(await connection.fetchval(APPLIED))) < end:
            if applied:
                samples.append((applied, resident_bytes(replica) / MIB))
            await asyncio.sleep(0.2)
        await connection.close()
    halves = [[mib for at, mib in samples if (at < end / 2) == first] for first in (True, False)]
    highest = max(mib for _, mib in samples)
    return Memory(end, highest, *(max(half, default=highest) for half in halves))
