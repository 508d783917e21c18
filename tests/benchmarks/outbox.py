"""What the transition stream costs: a backlog caught up by a relay, and a replica that has a relay beside it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.benchmarks.arena import PARTITIONS, Arena, Log
from tests.benchmarks.ours import Run, apply_all, environment, resident_bytes, usage
from tests.stack.broker import delete
from tests.stack.replica import Replica

CONVERSATIONS = 100_000
FILL = f"""
    INSERT INTO transition_outbox (conversation_id, session, version, from_status, to_status, actor, occurred_at)
    SELECT 'thread-' || lpad((n % {CONVERSATIONS})::text, 8, '0'), 1, 1 + n / {CONVERSATIONS}, 'pending', 'progress',
        'agent', now()
    FROM generate_series(0, $1 - 1) AS n"""
WAITING = "SELECT count(*) FROM transition_outbox"
SIZE = "SELECT pg_total_relation_size('transition_outbox')"
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class CatchUp:
    """A backlog, published by one relay. `sizes` of the table in bytes: with the backlog, empty, and after a vacuum."""

    rows: int
    seconds: float
    cpu_seconds: float
    highest_bytes: int
    sizes: tuple[int, int, int]


@asynccontextmanager
async def relay(arena: Arena, kafka: KafkaSettings, database: str) -> AsyncIterator[Replica]:
    """A relay with a topic of its own; raises if it does not end in good order."""
    topic = f"{kafka.topics[0]}.transition"
    async with admin(kafka) as brokers:
        await brokers.create(topic, PARTITIONS, 1, {})
    settings = {**environment(kafka, database), "CONSUMER_KAFKA__TRANSITION_TOPIC": topic}
    started = await Replica(settings, arena.logs / "relay.log", "consumer", "outbox").start()
    try:
        while not await started.ready():  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_SECONDS)
        yield started
    finally:
        code = await started.stop()
        await delete(kafka.bootstrap_servers, topic)
    if code:
        raise RuntimeError(f"the relay ended with {code}:\n{started.log.read_text()[-2000:]}")


async def catch_up(arena: Arena, rows: int) -> CatchUp:
    async with arena.topic() as kafka, arena.database() as database, relay(arena, kafka, database) as running:
        connection = await asyncpg.connect(database)
        before = usage([running]).replicas
        await connection.execute(FILL, rows)
        full, started, highest = await connection.fetchval(SIZE), time.monotonic(), 0
        while await running.count("conversation_outbox_published_total") < rows:
            highest = max(highest, resident_bytes(running))
            await asyncio.sleep(POLL_SECONDS)
        seconds, cpu_seconds = time.monotonic() - started, usage([running]).replicas - before
        empty = await connection.fetchval(SIZE)
        await connection.execute("VACUUM transition_outbox")
        vacuumed = await connection.fetchval(SIZE)
        await connection.close()
    return CatchUp(rows, seconds, cpu_seconds, highest, (full, empty, vacuumed))


async def beside_a_relay(arena: Arena, log: Log) -> Run:
    """A replica applies the log while a relay publishes its transitions."""
    async with arena.database() as database, relay(arena, log.kafka, database) as running:
        run = await apply_all(arena, log, database)
        connection = await asyncpg.connect(database)
        while await connection.fetchval(WAITING):  # noqa: ASYNC110 - another process publishes
            await asyncio.sleep(POLL_SECONDS)
        await connection.close()
        assert await running.count("conversation_outbox_published_total")
    return run
