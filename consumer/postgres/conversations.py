"""Conversations whole: every session and history row, read at one moment."""

from collections.abc import Sequence
from datetime import datetime

import asyncpg

from consumer.history.comparison import Stored
from consumer.lifecycle.model import HistoryRow, Kind, Outcome, Session, Status
from consumer.postgres.attempt import HISTORY_COLUMNS, LOAD_ARCHIVE, SESSION_LIST, session_from_row

_KINDS = {kind.value: kind for kind in Kind}
_OUTCOMES = {outcome.value: outcome for outcome in Outcome}
_STATUSES = {status.value: status for status in Status}
_HISTORY_LIST = ", ".join((*HISTORY_COLUMNS, "recorded_at"))
HISTORY = f"SELECT {_HISTORY_LIST} FROM conversation_event WHERE conversation_id = $1 ORDER BY version"
_ROWS = f"SELECT conversation_id, wake_at, version, {SESSION_LIST} FROM conversation WHERE conversation_id = ANY($1)"
_HISTORIES = f"""
    SELECT {_HISTORY_LIST} FROM conversation_event
    WHERE conversation_id = ANY($1::text[]) ORDER BY conversation_id, version, event_id"""
# Also what has lost its row.
_IDS_AFTER = """
    SELECT conversation_id FROM (
        (SELECT conversation_id FROM conversation WHERE conversation_id > $1 ORDER BY 1 LIMIT $2) UNION
        (SELECT DISTINCT conversation_id FROM conversation_event WHERE conversation_id > $1 ORDER BY 1 LIMIT $2) UNION
        (SELECT DISTINCT conversation_id FROM conversation_session_archive WHERE conversation_id > $1
            ORDER BY 1 LIMIT $2)
    ) AS id ORDER BY 1 LIMIT $2"""
# Counting a large table takes longer than a statement may.
_ABOUT_HOW_MANY = """
    SELECT CASE WHEN reltuples > 1e6 THEN reltuples::bigint ELSE (SELECT count(*) FROM conversation) END
    FROM pg_class WHERE oid = 'conversation'::regclass"""


async def read_stored(connection: asyncpg.Connection, conversation_ids: Sequence[str]) -> list[Stored]:
    """What is stored of each conversation, at one moment if the transaction has one snapshot."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    rows = {row[0]: row for row in await connection.fetch(_ROWS, conversation_ids)}
    archives = await archived_sessions(connection, conversation_ids)
    histories: dict[str, list[tuple[HistoryRow, datetime]]] = {}
    for *row, recorded_at in await connection.fetch(_HISTORIES, conversation_ids):
        histories.setdefault(row[0], []).append((history_row(*row), recorded_at))
    return [
        Stored(
            key,
            version=rows[key][2] if key in rows else 0,
            row=session_from_row(*rows[key][3:]) if key in rows else None,
            archive=tuple(archives.get(key, ())),
            wake_at=rows[key][1] if key in rows else None,
            history=histories.get(key, []),
            now=now,
        )
        for key in conversation_ids
    ]


async def archived_sessions(
    connection: asyncpg.Connection, conversation_ids: Sequence[str]
) -> dict[str, list[Session]]:
    """Conversation -> its archived sessions, ascending, where it has some."""
    archives: dict[str, list[Session]] = {}
    for key, *session in await connection.fetch(LOAD_ARCHIVE, conversation_ids) if conversation_ids else ():
        archives.setdefault(key, []).append(session_from_row(*session))
    return archives


async def ids_after(connection: asyncpg.Connection, conversation_id: str, limit: int) -> list[str]:
    return [row[0] for row in await connection.fetch(_IDS_AFTER, conversation_id, limit)]


async def about_how_many(connection: asyncpg.Connection) -> int:
    """Conversations: counted, or estimated where that takes long."""
    return int(await connection.fetchval(_ABOUT_HOW_MANY))


def history_row(  # noqa: PLR0917 - the columns, in their order
    conversation_id: str,
    source: str,
    event_id: str,
    session: int,
    version: int,
    kind: str,
    occurred_at: datetime,
    outcome: str,
    requested: str | None,
    from_status: str | None,
    to_status: str,
    actor: str,
    reason: str | None,
) -> HistoryRow:
    return HistoryRow(
        conversation_id,
        source,
        event_id,
        session,
        version,
        _KINDS[kind],
        occurred_at,
        _OUTCOMES[outcome],
        requested,
        _STATUSES[from_status] if from_status else None,
        _STATUSES[to_status],
        actor,
        reason,
    )
