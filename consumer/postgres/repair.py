"""A conversation written anew as its history says, or removed for good: what an operator asks for."""

import asyncpg

from consumer.errors import ContentionError
from consumer.history.comparison import repair_row
from consumer.lifecycle.model import Conversation
from consumer.postgres.attempt import ARCHIVE, INSERT, UPDATE, copy_history
from consumer.postgres.outbox import TURN
from consumer.postgres.tables import CONVERSATION_TABLES

LOCK_SECONDS = 5
"""Longer than a worker's transaction lasts, so that a busy partition does not keep a deletion out."""
_KEEP_ARCHIVE = "DELETE FROM conversation_session_archive WHERE conversation_id = $1 AND session <> ALL($2::int[])"


async def write_repaired(connection: asyncpg.Connection, target: Conversation, loaded: int) -> None:
    """Writes `target` as its next version, if the row still is at version `loaded`; 0 if there is none.

    Whoever has loaded or cached the row finds another version. Raises `ContentionError` if somebody else has written.
    """
    now = await connection.fetchval("SELECT clock_timestamp()")
    row = repair_row(target, now)
    *superseded, current = target.sessions
    to_write = [(loaded, target.id, row.version, *current)]
    if not await connection.fetch(UPDATE if loaded else INSERT, to_write):
        raise ContentionError("version")
    await connection.execute(ARCHIVE, [(loaded, target.id, row.version, *session) for session in superseded])
    await connection.execute(_KEEP_ARCHIVE, target.id, [session.number for session in superseded])
    await copy_history(connection, [(*row, now)])


# The order in which the relay and the workers lock: the outbox's turn, offsets, conversations.
_LOCK_TIMEOUT = f"SET LOCAL lock_timeout = {LOCK_SECONDS * 1000}"
_TAKE_TURN = f"SELECT pg_advisory_xact_lock({TURN})"
_LOCK_OFFSETS = "SELECT 1 FROM kafka_offset ORDER BY consumer_group, topic, partition FOR NO KEY UPDATE"
_LOCK_ROW = "SELECT 1 FROM conversation WHERE conversation_id = $1 FOR UPDATE"
_RENEW_TOKENS = "UPDATE kafka_offset SET mark = $1"
_COUNTS = [f"(SELECT count(*) FROM {table} WHERE conversation_id = $1)" for table in CONVERSATION_TABLES]
_COUNT = f"SELECT {', '.join(_COUNTS)}"
# One statement, so one snapshot: what a writer makes anew meanwhile is whole.
_GONE = [
    f"{table}_gone AS (DELETE FROM {table} WHERE conversation_id = $1 RETURNING 1)" for table in CONVERSATION_TABLES
]
_COUNTS_OF_GONE = [f"(SELECT count(*) FROM {table}_gone)" for table in CONVERSATION_TABLES]
_DELETE = f"WITH {', '.join(_GONE)} SELECT {', '.join(_COUNTS_OF_GONE)}"


async def count_rows(connection: asyncpg.Connection, conversation_id: str) -> dict[str, int]:
    """Table -> how many rows it has of the conversation."""
    return dict(zip(CONVERSATION_TABLES, await connection.fetchrow(_COUNT, conversation_id), strict=True))


async def delete_rows(connection: asyncpg.Connection, conversation_id: str, token: int) -> dict[str, int]:
    """Deletes every row of a conversation, and renews the fencing token of every partition.

    A worker that has the conversation cached finds another token and drops its cache, so that the old conversation
    cannot be taken for a new one at the same version. Raises `ContentionError` while somebody holds a row for long.
    """
    await connection.execute(_LOCK_TIMEOUT)
    await connection.execute(_TAKE_TURN)
    await connection.execute(_LOCK_OFFSETS)
    await connection.execute(_LOCK_ROW, conversation_id)
    gone = await connection.fetchrow(_DELETE, conversation_id)
    await connection.execute(_RENEW_TOKENS, token)
    return dict(zip(CONVERSATION_TABLES, gone, strict=True))
