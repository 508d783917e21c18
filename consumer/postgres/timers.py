"""Timers: `wake_at` of the conversations that may have a deadline."""

from datetime import datetime

import asyncpg

from consumer.postgres import citus
from consumer.postgres.client import on_citus
from consumer.ticker import DueTimer

_DEADLINE = "LEAST(idle_at, expires_at)"
# A timer that is pushed back is due a microsecond before a full second, as hardly any deadline is. So those of overdue
# deadlines are found by 900 probes of the index, however many others are due within the same quarter of an hour.
_PUSHED_BACK_SECONDS = 900
_WAKE_NEXT = """CASE
        WHEN due.deadline >= due.now THEN due.deadline
        ELSE date_trunc('second', due.now + LEAST(GREATEST(due.now - due.deadline, interval '60 s'), interval '15 min'))
            - interval '1 us' END"""
_TAKE_DUE = f"""
    UPDATE conversation AS c SET wake_at = {_WAKE_NEXT}
    FROM (
        SELECT conversation_id, wake_at, {_DEADLINE} AS deadline, statement_timestamp() AS now FROM conversation
        WHERE wake_at <= statement_timestamp() AND wake_at >= COALESCE($2::timestamptz, '-infinity')
        ORDER BY wake_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
    ) AS due WHERE c.conversation_id = due.conversation_id
    RETURNING c.conversation_id, due.wake_at, due.deadline, due.now"""
_LOCK_DUE = f"""
    SELECT due.conversation_id, due.wake_at, due.deadline, {_WAKE_NEXT} FROM (
        SELECT conversation_id, wake_at, {_DEADLINE} AS deadline, $2::timestamptz AS now FROM conversation
        WHERE conversation_id = ANY($1::text[]) AND wake_at <= $2 FOR NO KEY UPDATE SKIP LOCKED
    ) AS due"""
_IS_OVERDUE = f"{_DEADLINE} < now() - interval '60 s'"
_OVERDUE = f"""
    SELECT (SELECT count(*) FROM conversation WHERE wake_at <= now() AND {_IS_OVERDUE})
        + (SELECT count(*) FROM conversation WHERE wake_at > now() AND {_IS_OVERDUE} AND wake_at = ANY (ARRAY (
            SELECT date_trunc('second', now()) + n * interval '1 s' - interval '1 us'
            FROM generate_series(1, {_PUSHED_BACK_SECONDS}) AS n)))"""


async def take_due(connection: asyncpg.Connection, limit: int, since: datetime | None) -> list[DueTimer]:
    """See `ticker.Timers`; in a transaction. A timer whose row somebody else locks is left for a later call."""
    if on_citus(connection):
        rows = await citus.take_due_timers(connection, _LOCK_DUE, limit, since)
    else:
        rows = await connection.fetch(_TAKE_DUE, limit, since)
    return [DueTimer(*row) for row in rows]


async def overdue(connection: asyncpg.Connection) -> int:
    """See `ticker.Timers`. A deadline that is overdue has a timer that is due, or was pushed back."""
    if on_citus(connection):
        return await citus.overdue(connection, _PUSHED_BACK_SECONDS)
    return int(await connection.fetchval(_OVERDUE))
