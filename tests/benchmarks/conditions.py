"""Ours under conditions: paced, grown, skewed, contended, behind by a million."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any

import asyncpg
from aiokafka import AIOKafkaProducer
from pydantic import SecretStr

from consumer.decoding import encoded
from consumer.lifecycle.model import Author, Message
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.benchmarks.arena import Arena, Log, fetch
from tests.benchmarks.ours import Run, apply_all, passed, replicas, resident_bytes
from tests.demo.writers import apply_until_written
from tests.stack.database import APPLIED, execute

NOTIFY = """
    CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_notify('written', new.event_id);
        RETURN NULL;
    END $$;
    CREATE TRIGGER tell AFTER INSERT ON conversation_event FOR EACH ROW WHEN (new.event_id LIKE 'watched-%')
        EXECUTE FUNCTION tell()"""
EACH = 5
"""Of so many events one is watched: to notify makes PostgreSQL commit one transaction at a time."""
DORMANT = """
    INSERT INTO conversation (conversation_id, version, session, status, opened_at, accepted_at, accepted_by,
        last_activity_at, last_agent_message_at, user_messages, agent_messages, idle_at, expires_at, wake_at)
    SELECT 'thread-' || lpad(n::text, 8, '0'), 1, 1, 'progress', at, at, 'agent', at, at, 0, 1,
        at + interval '15 min', at + interval '24 h', at + interval '15 min'
    FROM generate_series(0, {last}) AS n, (SELECT now() - interval '2 min' AS at) AS t;
    INSERT INTO conversation_event
    SELECT conversation_id, 'whatsapp:15550001111', 'opening', 1, 1, 'inbound-message', opened_at, opened_at,
        'applied', 'agent', null, 'progress', 'agent', null FROM conversation"""
SOURCE = "whatsapp:15550001111"
HOT = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'conversation'"
"""Each connection adds what it has done when it ends, at the latest."""
WRITERS = 8
CONTENDED = 10
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Latency:
    """From the broker's append to the commit that another client sees, in milliseconds."""

    events: int
    p50: float
    p99: float
    highest: float


async def latency(arena: Arena, per_second: int, seconds: float) -> Latency:
    """Events at an even pace, each on the clock from the broker's append (cut to the millisecond: never too short)."""
    watch = Watch()
    async with arena.topic({"message.timestamp.type": "LogAppendTime"}) as kafka, arena.database() as database:
        await execute(database, NOTIFY)
        listener = await asyncpg.connect(database)
        await listener.add_listener("written", watch.hear)
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
        await producer.start()
        async with replicas(arena, 1, kafka, database):
            await watch.send(producer, kafka.topics[0], "watched-first")
            await watch.all_seen()
            appended = await _send_paced(watch, producer, kafka.topics[0], per_second, seconds)
            await watch.all_seen()
        await producer.stop()
        await listener.close()
    took = sorted((watch.seen[event_id] - at) * 1000 for event_id, at in list(appended.items())[per_second // EACH :])
    cut = quantiles(took, n=100)
    return Latency(len(took), cut[49], cut[98], took[-1])


class Watch:
    """Another client of the database, who hears of the commits that are watched for."""

    def __init__(self) -> None:
        self.seen: dict[str, float] = {}
        self._outstanding: set[str] = set()

    async def send(self, producer: AIOKafkaProducer, topic: str, event_id: str) -> Any:
        """The future of its acknowledgement."""
        if event_id.startswith("watched"):
            self._outstanding.add(event_id)
        conversation = f"thread-{hash(event_id) % 2000}"
        key, value = encoded(Message(conversation, SOURCE, event_id, datetime.now(UTC), Author.USER))
        return await producer.send(topic, value, key)

    def hear(self, *data: Any) -> None:
        self.seen[data[-1]] = time.time()
        self._outstanding.discard(data[-1])

    async def all_seen(self) -> None:
        async with asyncio.timeout(60):
            while self._outstanding:  # noqa: ASYNC110 - it is a database that is waited for
                await asyncio.sleep(0.01)


async def _send_paced(
    watch: Watch, producer: AIOKafkaProducer, topic: str, per_second: int, seconds: float
) -> dict[str, float]:
    """Id of a watched event -> when the broker appended it."""
    sent: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(round(per_second * seconds)):
        await asyncio.sleep(began + number / per_second - time.monotonic())
        event_id = f"paced-{number}" if number % EACH else f"watched-{number}"
        sent[event_id] = await watch.send(producer, topic, event_id)
    await asyncio.gather(*sent.values())
    watched = {event_id: acknowledged for event_id, acknowledged in sent.items() if event_id.startswith("watched")}
    return {event_id: acknowledged.result().timestamp / 1000 for event_id, acknowledged in watched.items()}


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


async def on_a_grown_table(arena: Arena, log: Log, template: str) -> Grown:
    """The talk of `log` on a copy of it."""
    async with arena.database(template) as database:
        run = await apply_all(arena, log, database)
        counted = await fetch(database, HOT)
    ((updates, hot),) = counted
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
    return Memory(log.workload.total, highest, *(max(half, default=highest) for half in halves))
