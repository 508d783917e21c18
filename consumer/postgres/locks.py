"""Who holds the row of a conversation, and sessions that would hold what they have without limit."""

import asyncio

import asyncpg

from consumer.postgres import citus
from consumer.postgres.client import on_citus, set_for_transaction
from consumer.service.ports import LockHolder

_WAIT_SECONDS = 0.4
_POLL_SECONDS = 0.02
_LOCK_ROW = "SELECT 1 FROM conversation WHERE conversation_id = $1 FOR NO KEY UPDATE"
# A row that somebody has inserted and not committed is not seen, but another one of its id has to wait for it.
_CLAIM_ID = """
    INSERT INTO conversation (conversation_id, version, session, status, opened_at, last_activity_at, user_messages,
        agent_messages, expires_at)
    VALUES ($1, 0, 0, '', now(), now(), 0, 0, now()) ON CONFLICT DO NOTHING"""
# Who waits for a tuple waits for its next owner, who waits for the transaction that holds it.
_HOLDER = """
    WITH RECURSIVE waiting(pid, behind_others) AS (
        SELECT pid, locktype = 'tuple' FROM pg_locks WHERE pid = $1 AND NOT granted
        UNION
        SELECT l.pid, l.locktype = 'tuple' FROM waiting AS w
        CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS ahead JOIN pg_locks AS l ON l.pid = ahead
        WHERE w.behind_others AND NOT l.granted
    )
    SELECT a.pid, a.application_name, coalesce(a.usename, ''), a.xact_start, coalesce(a.state, '')
    FROM waiting AS w CROSS JOIN LATERAL unnest(pg_blocking_pids(w.pid)) AS holder
    JOIN pg_stat_activity AS a ON a.pid = holder
    WHERE NOT w.behind_others ORDER BY a.xact_start LIMIT 1"""

# A session that waits for its client within a statement counts as active: before the rows of a COPY, or amid those of
# an answer. No timeout of the server's ends it, as it ignores the cancellation while it waits. So a client that is
# frozen, or cut off by a silent network, keeps its locks. A client that goes on gives up waiting at its own time
# limit.
END_SILENT = """
    SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND application_name = $1
        AND state = 'active' AND wait_event IN ('ClientRead', 'ClientWrite') AND pid <> pg_backend_pid()
        AND state_change < clock_timestamp() - $2::float8 * interval '1 s'"""


async def find_holder(
    waiting: asyncpg.Connection, watching: asyncpg.Connection, conversation_id: str
) -> LockHolder | None:
    """`waiting` asks for the row and gives up soon; meanwhile `watching` asks PostgreSQL whom it waits for."""
    holder, own_id = (citus.HOLDER, "citus_backend_gpid()") if on_citus(waiting) else (_HOLDER, "pg_backend_pid()")
    transaction = waiting.transaction()
    await transaction.start()
    try:
        await set_for_transaction(waiting)
        own = await waiting.fetchval(f"SELECT {own_id}")
        await waiting.execute(f"SET LOCAL lock_timeout = {_WAIT_SECONDS * 1000:.0f}")
        asking = asyncio.create_task(_ask(waiting, conversation_id))
        try:
            return await _watch(watching, holder, own, asking)
        finally:
            await asking
    finally:
        await transaction.rollback()


async def _ask(connection: asyncpg.Connection, conversation_id: str) -> None:
    """Ends when the row is free, or after the time limit."""
    try:
        if not await connection.fetch(_LOCK_ROW, conversation_id):
            await connection.execute(_CLAIM_ID, conversation_id)
    except asyncpg.LockNotAvailableError:
        return


async def _watch(
    connection: asyncpg.Connection, holder: str, waiting: int, asking: asyncio.Task[None]
) -> LockHolder | None:
    while not asking.done():
        if row := await connection.fetchrow(holder, waiting):
            return LockHolder(*row)
        await asyncio.wait([asking], timeout=_POLL_SECONDS)
    return None
