"""The hot transaction: guard, read, write, offset.

Rows travel as arrays of rows, or by COPY: one statement per table and batch, whatever the number of conversations.
SQLAlchemy owns tables and pool; the statements go to the driver itself, which takes half the time for them.
"""

import time
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

import asyncpg

from consumer.errors import (
    ContentionError,
    StaleOwnerError,
    UnavailableError,
)
from consumer.lifecycle.model import Author, Change, Conversation, HistoryRow, Identity, Session, Status, Tick
from consumer.lifecycle.rules import reaches_back
from consumer.offsets import Partition, Progress
from consumer.postgres.errors import classified
from consumer.postgres.tables import session_columns, transition_outbox
from consumer.service.ports import Conversations, Decided, EventsById, Locking, Lost, Snapshot

BISECT_SECONDS = 1.0

_SESSION_COLUMNS = tuple(column.name for column in session_columns())
HISTORY_COLUMNS = tuple("type" if name == "kind" else name for name in HistoryRow._fields)
_OUTBOX_COLUMNS = tuple(column.name for column in transition_outbox.c if column.name != "id")
_OUTBOX_FIELDS = attrgetter(*_OUTBOX_COLUMNS)
_SESSION_LIST = ", ".join(_SESSION_COLUMNS)
_STATUS = {status.value: status for status in Status}
_AUTHOR = {author.value: author for author in Author}

LOOK = """
    SELECT clock_timestamp(), NULL, NULL, NULL
    UNION ALL
    SELECT NULL, c.conversation_id, NULL, NULL FROM unnest($1::conversation_version[]) AS k
    JOIN conversation AS c ON c.conversation_id = k.conversation_id AND c.version <> k.version
    UNION ALL
    SELECT NULL, e.conversation_id, e.source, e.event_id FROM unnest($2::event_identity[]) AS k
    JOIN conversation_event AS e USING (conversation_id, source, event_id)"""
LOAD = f"SELECT conversation_id, version, {_SESSION_LIST} FROM conversation WHERE conversation_id = ANY($1::text[])"
LOAD_ARCHIVE = f"""
    SELECT conversation_id, {_SESSION_LIST} FROM conversation_session_archive
    WHERE conversation_id = ANY($1::text[]) ORDER BY conversation_id, session"""
LOCK = "SELECT conversation_id FROM conversation WHERE conversation_id = ANY($1::text[]) ORDER BY 1 FOR NO KEY UPDATE"
UPDATE = f"""
    UPDATE conversation AS c SET version = n.version, {", ".join(f"{name} = n.{name}" for name in _SESSION_COLUMNS)},
        wake_at = CASE WHEN n.expires_at IS NOT NULL THEN LEAST(c.wake_at, n.idle_at, n.expires_at) END
    FROM unnest($1::conversation_write[]) AS n
    WHERE c.conversation_id = n.conversation_id AND c.version = n.loaded
    RETURNING c.conversation_id"""
INSERT = f"""
    INSERT INTO conversation (conversation_id, version, {_SESSION_LIST}, wake_at)
    SELECT conversation_id, version, {_SESSION_LIST}, LEAST(idle_at, expires_at) FROM unnest($1::conversation_write[])
    ON CONFLICT DO NOTHING RETURNING conversation_id"""
ARCHIVE = f"""
    INSERT INTO conversation_session_archive (conversation_id, {_SESSION_LIST})
    SELECT conversation_id, {_SESSION_LIST} FROM unnest($1::conversation_write[])
    ON CONFLICT (conversation_id, session) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _SESSION_COLUMNS if name != "session")}"""
OF_PARTITION = "consumer_group = $1 AND topic = $2 AND partition = $3"
ADVANCE = f"""
    UPDATE kafka_offset SET next_offset = $6, mark = $7 WHERE {OF_PARTITION} AND next_offset = $4 AND mark = $5
    RETURNING 1"""
HOLD = f"UPDATE kafka_offset SET next_offset = $4 WHERE {OF_PARTITION}"


class PostgresAttempt:
    """See `service.Attempt`."""

    def __init__(
        self, connection: asyncpg.Connection, snapshot: Snapshot, progress: Progress | None, locking: Locking
    ) -> None:
        self.connection = connection
        self.snapshot = snapshot
        self._progress = progress
        self._write = _save_unlocked if locking is Locking.SKIPPING else _save

    async def save(self, decided: Decided) -> Lost:
        with classified():
            return await self._write(self.connection, decided, self._progress)


async def advance_offset(connection: asyncpg.Connection, progress: Progress) -> None:
    """The guard: moves the partition's offset, if it is where it was left, and so holds it until the commit.

    Another owner still holding it is an outage: it will be timed out.
    """
    here = partition_key(progress.partition)
    try:
        with classified():
            moved = await connection.fetch(
                ADVANCE, *here, progress.start, progress.mark, progress.end, progress.next_mark
            )
    except ContentionError as error:
        raise UnavailableError("another owner holds the partition's offset row") from error
    if not moved:
        raise StaleOwnerError(
            f"{progress.partition.topic}[{progress.partition.number}] is no longer as it was left at {progress.start}"
        )


async def load(connection: asyncpg.Connection, events: EventsById, remembered: Conversations) -> Snapshot:
    """Rows before ids, or both at once: a version that still stands at the save proves the known ids complete."""
    versions = [(key, remembered[key].version if key in remembered else 0) for key in events]
    now, changed, known = await _read_versions_and_known_ids(connection, versions, _identities(events, remembered))
    found = dict(remembered)
    if changed:
        for row in await connection.fetch(LOAD, changed):
            found[row[0]] = Conversation(row[0], row[1], (session_from_row(*row[2:]),))
        now, _, known_by_now = await _read_versions_and_known_ids(connection, (), _identities(events, changed))
        known |= known_by_now
    older = [key for key, known_as in found.items() if reaches_back(known_as, events[key], now)]
    for row in await connection.fetch(LOAD_ARCHIVE, older) if older else ():
        *archived, current = found[row[0]].sessions
        found[row[0]] = found[row[0]]._replace(sessions=(*archived, session_from_row(*row[1:]), current))
    return Snapshot(now, found, known)


async def _read_versions_and_known_ids(
    connection: asyncpg.Connection, versions: Collection[tuple[str, int]], identities: Collection[tuple[str, str, str]]
) -> tuple[datetime, list[str], dict[str, set[Identity]]]:
    """Now, the conversations that are at other versions than these, and the events that are known: as of one moment."""
    (now, *_), *answer = await connection.fetch(LOOK, versions, identities)
    changed: list[str] = []
    known: dict[str, set[Identity]] = {}
    for _, key, source, event_id in answer:
        if source is None:
            changed.append(key)
        else:
            known.setdefault(key, set()).add((source, event_id))
    return now, changed, known


def _identities(events: EventsById, keys: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(key, event.source, event.event_id) for key in keys for event in events[key] if not isinstance(event, Tick)]


async def _save(connection: asyncpg.Connection, decided: Decided, progress: Progress | None) -> Lost:
    changes = _writing(decided)
    won = await _update(connection, changes) | await _insert(connection, [c for c in changes if c.before.version == 0])
    await _write_history_and_outbox(connection, [change for change in changes if change.after.id in won], decided.now)
    lost = {change.after.id: "version" for change in changes if change.after.id not in won}
    await _hold_offset(connection, progress, lost)
    return lost


async def _save_unlocked(connection: asyncpg.Connection, decided: Decided, progress: Progress | None) -> Lost:
    """As `_save`, but a row that somebody holds is lost at once instead of waited for."""
    changes = _writing(decided)
    free = {row[0] for row in await connection.fetch(f"{LOCK} SKIP LOCKED", [c.after.id for c in changes])}
    won = await _update(connection, [change for change in changes if change.after.id in free])
    new = [change for change in changes if change.before.version == 0]
    won |= await _insert_unblocked(connection, new, time.monotonic() + BISECT_SECONDS)
    await _write_history_and_outbox(connection, [change for change in changes if change.after.id in won], decided.now)
    lost = {c.after.id: "version" if c.after.id in free else "lock" for c in changes if c.after.id not in won}
    await _hold_offset(connection, progress, lost)
    return lost


def _writing(decided: Decided) -> list[Change]:
    """The changes that write, in the order in which every writer locks rows."""
    return sorted((change for change in decided.changes if change.rows), key=lambda change: change.after.id)


async def _update(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [_written(change, change.after.sessions[-1]) for change in changes if change.before.version]
    return {row[0] for row in await connection.fetch(UPDATE, rows)} if rows else set()


async def _insert(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [_written(change, change.after.sessions[-1]) for change in changes]
    return {row[0] for row in await connection.fetch(INSERT, rows)} if rows else set()


def _written(change: Change, session: Session) -> tuple[Any, ...]:
    """The type `conversation_write`."""
    return (change.before.version, change.after.id, change.after.version, *session)


async def _insert_unblocked(connection: asyncpg.Connection, changes: Sequence[Change], deadline: float) -> set[str]:
    """Bisects until the inserts that wait for somebody's uncommitted row stand alone; those are not won.

    Nor is what is left at the deadline: the guard must not be held for long.
    """
    try:
        with classified():
            async with connection.transaction():
                return await _insert(connection, changes)
    except ContentionError:
        if len(changes) == 1 or time.monotonic() > deadline:
            return set()
    middle = len(changes) // 2
    left = await _insert_unblocked(connection, changes[:middle], deadline)
    return left | await _insert_unblocked(connection, changes[middle:], deadline)


async def _write_history_and_outbox(connection: asyncpg.Connection, won: Sequence[Change], now: datetime) -> None:
    """What goes with the winners' rows: archived sessions, history, outbox."""
    several = [change for change in won if len(change.after.sessions) > 1]
    if archived := [_written(change, session) for change in several for session in _superseded(change)]:
        await connection.execute(ARCHIVE, archived)
    history = [(*row, now) for change in won for row in change.rows]
    if history:
        await connection.copy_records_to_table(
            "conversation_event", columns=(*HISTORY_COLUMNS, "recorded_at"), records=history
        )
    if transitions := [_OUTBOX_FIELDS(row) for change in won for row in change.rows if row.is_transition]:
        await connection.copy_records_to_table("transition_outbox", columns=_OUTBOX_COLUMNS, records=transitions)


async def _hold_offset(connection: asyncpg.Connection, progress: Progress | None, lost: Lost) -> None:
    """The offset waits for those that have lost."""
    if progress is not None and lost:
        await connection.execute(HOLD, *partition_key(progress.partition), progress.start)


def _superseded(change: Change) -> list[Session]:
    """The sessions that are not current and not in the archive as they are now."""
    archived = change.before.sessions[:-1]
    return [session for session in change.after.sessions[:-1] if session not in archived]


def partition_key(partition: Partition) -> tuple[str, str, int]:
    return partition.group, partition.topic, partition.number


def session_from_row(
    number: int, status: str, opened_at: datetime, accepted_at: Any, accepted_by: Any, *rest: Any
) -> Session:
    return Session(number, _STATUS[status], opened_at, accepted_at, _AUTHOR.get(accepted_by), *rest)
