"""What pruning costs: rows a second, and the WAL that a replica or a backup has to take."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

from consumer.commands.prune import BATCH_PAGES, PrunePlan, carry_out
from consumer.postgres.store import PostgresStore
from consumer.settings import DatabaseSettings

FILL = """
    INSERT INTO conversation_event (conversation_id, source, event_id, session, version, type, occurred_at, recorded_at,
        outcome, requested, to_status, actor)
    SELECT 'thread-' || lpad((n % 20000)::text, 8, '0'), 'whatsapp:15550001111', 'wamid.0.' || lpad(n::text, 9, '0'),
        1, 1 + n / 20000, 'inbound-message', at, at, 'applied', 'user', 'pending', 'user'
    FROM (SELECT n, now() - interval '60 days' * (1 - n::float / $1) AS at FROM generate_series(0, $1 - 1) AS n) AS x"""


@dataclass(frozen=True, slots=True)
class Pruning:
    """A run: `rows` removed. `wal_bytes` has the image of each page that is touched, as after a checkpoint."""

    rows: int
    seconds: float
    wal_bytes: int


async def measure(url: str, rows: int = 1_000_000, batch_pages: int = BATCH_PAGES) -> Pruning:
    """Fills the empty history of the database at `url` with sixty days of rows, and prunes the older half."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(FILL, rows)
        await connection.execute("VACUUM ANALYZE conversation_event")
        await connection.execute("CHECKPOINT")
        before = await connection.fetchval("SELECT pg_current_wal_insert_lsn()")
        async with PostgresStore.open(DatabaseSettings(url=url)) as store:
            horizon = timedelta(days=30)
            plan = PrunePlan(horizon, await store.now() - horizon, {}, *await store.history_size())
            pruned = await carry_out(store, plan, asyncio.Event(), batch_pages=batch_pages)
        wal_bytes = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)", before)
        return Pruning(pruned.rows, pruned.seconds, int(wal_bytes))
    finally:
        await connection.close()
