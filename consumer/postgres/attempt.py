"""The hot transaction: guard, read, write, offset.

Rows travel as arrays of rows, or by COPY: one statement per table and batch, whatever the number of conversations.
SQLAlchemy owns the tables and the pool. The statements go to the driver itself, which takes half the time for them.
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import Any

import asyncpg

from consumer.errors import ContentionError, StaleOwnerError, UnavailableError
from consumer.lifecycle.model import Author, Change, Conversation, Event, HistoryRow, Identity, Session, Status, Tick
from consumer.lifecycle.rules import reaches_back
from consumer.offsets import Partition, Progress
from consumer.postgres import citus
from consumer.postgres.client import on_citus, set_for_transaction
from consumer.postgres.errors import classified
from consumer.postgres.tables import session_columns, transition_outbox
from consumer.service.ports import Conversations, Decided, EventsById, Locking, Lost, Snapshot

BISECT_SECONDS = 1.0
MANY_LATE = 8
"""Of a conversation at once: then its sessions are read in one go, from the earliest on."""

_SESSION_COLUMNS = tuple(column.name for column in session_columns())
HISTORY_COLUMNS = tuple("type" if name == "kind" else name for name in HistoryRow._fields)
OUTBOX_COLUMNS = tuple(column.name for column in transition_outbox.c if column.name != "id")
_OUTBOX_FIELDS = attrgetter(*OUTBOX_COLUMNS[:-1])
SESSION_LIST = ", ".join(_SESSION_COLUMNS)
_STATUS = {status.value: status for status in Status}
_AUTHOR = {author.value: author for author in Author}

READ_VERSIONS_AND_KNOWN_IDS = """
    SELECT clock_timestamp(), NULL, NULL, NULL
    UNION ALL
    SELECT NULL, c.conversation_id, NULL, NULL FROM unnest($1::conversation_version[]) AS k
    JOIN conversation AS c ON c.conversation_id = k.conversation_id AND c.version <> k.version
    UNION ALL
    SELECT NULL, e.conversation_id, e.source, e.event_id FROM unnest($2::event_identity[]) AS k
    JOIN conversation_event AS e USING (conversation_id, source, event_id)"""
LOAD = f"SELECT conversation_id, version, {SESSION_LIST} FROM conversation WHERE conversation_id = ANY($1::text[])"
LOAD_ARCHIVE = f"""
    SELECT conversation_id, {SESSION_LIST} FROM conversation_session_archive
    WHERE conversation_id = ANY($1::text[]) ORDER BY conversation_id, session"""
# The session that an event of a time belongs to, or from that one on. One of before all sessions belongs to the first.
LOAD_ARCHIVE_AT = f"""
    SELECT k.id, {", ".join(f"a.{name}" for name in _SESSION_COLUMNS)}
    FROM (
        SELECT DISTINCT id, later, coalesce((
            SELECT b.session FROM conversation_session_archive AS b
            WHERE b.conversation_id = id AND b.opened_at <= at ORDER BY b.session DESC LIMIT 1), 1) AS session
        FROM unnest($1::text[], $2::timestamptz[], $3::boolean[]) AS asked(id, at, later)) AS k
    JOIN conversation_session_archive AS a ON a.conversation_id = k.id
        AND a.session BETWEEN k.session AND CASE WHEN k.later THEN 2147483647 ELSE k.session END
    ORDER BY a.conversation_id, a.session"""
LOCK = "SELECT conversation_id FROM conversation WHERE conversation_id = ANY($1::text[]) ORDER BY 1 FOR NO KEY UPDATE"
VERSION_GUARD = "c.version = n.loaded"
SET_ROW = f"""
    UPDATE conversation AS c SET version = n.version, {", ".join(f"{name} = n.{name}" for name in _SESSION_COLUMNS)},
        wake_at = CASE WHEN n.expires_at IS NOT NULL THEN LEAST(c.wake_at, n.idle_at, n.expires_at) END"""
INSERT_ROW = f"""
    INSERT INTO conversation (conversation_id, version, {SESSION_LIST}, wake_at)
    SELECT conversation_id, version, {SESSION_LIST}, LEAST(idle_at, expires_at)"""

UPDATE = f"""{SET_ROW}
    FROM unnest($1::conversation_write[]) AS n
    WHERE c.conversation_id = n.conversation_id AND {VERSION_GUARD}
    RETURNING c.conversation_id"""
INSERT = f"""{INSERT_ROW}
    FROM unnest($1::conversation_write[]) ON CONFLICT DO NOTHING RETURNING conversation_id"""
ARCHIVE = f"""
    INSERT INTO conversation_session_archive (conversation_id, {SESSION_LIST})
    SELECT conversation_id, {SESSION_LIST} FROM unnest($1::conversation_write[])
    ON CONFLICT (conversation_id, session) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _SESSION_COLUMNS if name != "session")}"""
OF_PARTITION = "consumer_group = $1 AND topic = $2 AND partition = $3"
# `mark` is the fencing token.
OFFSET_GUARD = "next_offset = $4 AND mark = $5"
ADVANCE_OFFSET = f"""
    UPDATE kafka_offset SET next_offset = $6, mark = $7 WHERE {OF_PARTITION} AND {OFFSET_GUARD}
    RETURNING 1"""
HOLD_OFFSET = f"UPDATE kafka_offset SET next_offset = $4 WHERE {OF_PARTITION}"


class PostgresAttempt:
    """See `service.Attempt`."""

    def __init__(
        self, connection: asyncpg.Connection, snapshot: Snapshot, progress: Progress | None, locking: Locking
    ) -> None:
        self.connection = connection
        self.snapshot = snapshot
        self.progress = progress
        self._save = _save_unlocked if locking is Locking.SKIPPING else save

    async def save(self, decided: Decided) -> Lost:
        with classified():
            return await self._save(self.connection, decided, self.progress)


@asynccontextmanager
async def transaction(connection: asyncpg.Connection, progress: Progress | None) -> AsyncIterator[None]:
    """Under the guard of `progress`; committed at the end of the block."""
    async with connection.transaction():
        await set_for_transaction(connection)
        if progress is not None:
            await advance_offset(connection, progress)
        yield


async def advance_offset(connection: asyncpg.Connection, progress: Progress) -> None:
    """The guard: moves the partition's offset if nobody else has, and locks it until the commit.

    Raises `StaleOwnerError` if somebody has, and `UnavailableError` while another owner locks it: the database
    ends that owner's transaction in time.
    """
    try:
        with classified():
            moved = await connection.fetch(ADVANCE_OFFSET, *offset_parameters(progress))
    except ContentionError as error:
        raise UnavailableError("another owner holds the partition's offset row") from error
    if not moved:
        raise stale_owner(progress)


def offset_parameters(progress: Progress) -> tuple[Any, ...]:
    """Those of a guard, and of the move."""
    key = partition_key(progress.partition)
    return (*key, progress.start, progress.mark, progress.end, progress.next_mark)


def stale_owner(progress: Progress) -> StaleOwnerError:
    topic, number = progress.partition.topic, progress.partition.number
    return StaleOwnerError(f"{topic}[{number}] is no longer as this owner left it, at {progress.start}")


async def load(connection: asyncpg.Connection, events: EventsById, cached: Conversations) -> Snapshot:
    """Reads rows before ids, or both at once: a version that still stands at the save proves the known ids complete."""
    versions = [(key, cached[key].version if key in cached else 0) for key in events]
    now, changed, known = await _read_versions_and_known_ids(connection, versions, _identities(events, cached))
    conversations = dict(cached)
    if changed:
        for row in await connection.fetch(LOAD, changed):
            conversations[row[0]] = Conversation(row[0], row[1], (session_from_row(*row[2:]),))
        now, _, known_by_now = await _read_versions_and_known_ids(connection, (), _identities(events, changed))
        known |= known_by_now
    asked = [place for key, loaded in conversations.items() for place in _in_archive(loaded, events[key], now)]
    for row in await _load_archive(connection, asked) if asked else ():
        loaded = conversations[row[0]]
        *archived, current = loaded.sessions
        conversations[row[0]] = loaded._replace(sessions=(*archived, session_from_row(*row[1:]), current))
    return Snapshot(now, conversations, known)


def _in_archive(
    conversation: Conversation, events: Sequence[Event], now: datetime
) -> Iterable[tuple[str, datetime, bool]]:
    """What deciding `events` takes of the archive: (id, time, whether the sessions after that one are wanted too)."""
    if not reaches_back(conversation, events, now):
        return ()
    opened_at = conversation.sessions[-1].opened_at
    times = {event.at for event in events if event.at < opened_at}
    # A session may be opened a little ahead of the clock. Then an event may be dated back to any time from `now` on.
    if opened_at > now or len(times) > MANY_LATE:
        return ((conversation.id, min((now, *times)), True),)
    return [(conversation.id, at, False) for at in times]


async def _load_archive(connection: asyncpg.Connection, asked: Sequence[tuple[str, datetime, bool]]) -> Sequence[Any]:
    if on_citus(connection):
        return await citus.load_archive(connection, LOAD_ARCHIVE, asked)
    return list(await connection.fetch(LOAD_ARCHIVE_AT, *zip(*asked, strict=True)))


async def _read_versions_and_known_ids(
    connection: asyncpg.Connection, versions: Collection[tuple[str, int]], identities: Collection[tuple[str, str, str]]
) -> tuple[datetime, list[str], dict[str, set[Identity]]]:
    """The time, which conversations are at other versions than these, and which events are known: at one moment.

    On Citus at several, which is no weaker: who writes in between leaves another version, and the save finds that.
    """
    if on_citus(connection):
        now, rows = await citus.read_versions_and_known_ids(connection, versions, identities)
    else:
        (now, *_), *rows = await connection.fetch(READ_VERSIONS_AND_KNOWN_IDS, versions, identities)
    changed: list[str] = []
    known: dict[str, set[Identity]] = {}
    for _, key, source, event_id in rows:
        if source is None:
            changed.append(key)
        else:
            known.setdefault(key, set()).add((source, event_id))
    return now, changed, known


def _identities(events: EventsById, keys: Iterable[str]) -> list[tuple[str, str, str]]:
    return [(key, event.source, event.event_id) for key in keys for event in events[key] if not isinstance(event, Tick)]


async def save(connection: asyncpg.Connection, decided: Decided, progress: Progress | None) -> Lost:
    changes = changes_to_write(decided)
    written = await _update(connection, changes) | await _insert(connection, _new(changes))
    await _write_history_and_outbox(connection, [c for c in changes if c.after.id in written], decided.now)
    lost = {change.after.id: "version" for change in changes if change.after.id not in written}
    await _hold_offset(connection, progress, lost)
    return lost


async def _save_unlocked(connection: asyncpg.Connection, decided: Decided, progress: Progress | None) -> Lost:
    """As `save`, but a row that somebody else locks is a conflict at once: nobody waits for it."""
    changes = changes_to_write(decided)
    unlocked = await lock(connection, [change.after.id for change in changes], "SKIP LOCKED")
    written = await _update(connection, [change for change in changes if change.after.id in unlocked])
    written |= await _insert_unblocked(connection, _new(changes), time.monotonic() + BISECT_SECONDS)
    await _write_history_and_outbox(connection, [c for c in changes if c.after.id in written], decided.now)
    lost = {c.after.id: "version" if c.after.id in unlocked else "lock" for c in changes if c.after.id not in written}
    await _hold_offset(connection, progress, lost)
    return lost


async def lock(connection: asyncpg.Connection, ids: Sequence[str], others: str = "") -> set[str]:
    """Locks the rows that there are, and returns their ids; `others` says what becomes of those locked by others."""
    fetch = partial(citus.fetch_by_shard, connection) if on_citus(connection) else connection.fetch
    return {row[0] for row in await fetch(f"{LOCK} {others}", ids)}


def changes_to_write(decided: Decided) -> list[Change]:
    """The changes that have something to write, in the order in which every writer locks rows."""
    return sorted((change for change in decided.changes if change.rows), key=lambda change: change.after.id)


def _new(changes: Iterable[Change]) -> list[Change]:
    return [change for change in changes if change.before.version == 0]


async def _update(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [row_to_write(change, change.after.sessions[-1]) for change in changes if change.before.version]
    return {row[0] for row in await connection.fetch(UPDATE, rows)} if rows else set()


async def _insert(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [row_to_write(change, change.after.sessions[-1]) for change in changes]
    return {row[0] for row in await connection.fetch(INSERT, rows)} if rows else set()


def row_to_write(change: Change, session: Session) -> tuple[Any, ...]:
    """The type `conversation_write`."""
    return (change.before.version, change.after.id, change.after.version, *session)


async def _insert_unblocked(connection: asyncpg.Connection, changes: Sequence[Change], deadline: float) -> set[str]:
    """Bisects until each insert that waits for somebody's uncommitted row stands alone, and leaves those out.

    What remains at the deadline is left out as well: the guard must not be locked for long.
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


async def _write_history_and_outbox(connection: asyncpg.Connection, written: Sequence[Change], now: datetime) -> None:
    """Writes what belongs to the rows that were written: archived sessions, history, outbox."""
    several = [change for change in written if len(change.after.sessions) > 1]
    if archived := [row_to_write(change, session) for change in several for session in superseded(change)]:
        await connection.execute(ARCHIVE, archived)
    history = [(*row, now) for change in written for row in change.rows]
    if history:
        await copy_history(connection, history)
    if transitions := [(*_OUTBOX_FIELDS(row), now) for change in written for row in change.rows if row.is_transition]:
        await connection.copy_records_to_table("transition_outbox", columns=OUTBOX_COLUMNS, records=transitions)


async def copy_history(connection: asyncpg.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
    """Each row ends with the time of its decision."""
    await connection.copy_records_to_table(
        "conversation_event", columns=(*HISTORY_COLUMNS, "recorded_at"), records=rows
    )


async def _hold_offset(connection: asyncpg.Connection, progress: Progress | None, lost: Lost) -> None:
    """Sets the offset back while there are conflicts: their events are still to be written."""
    if progress is not None and lost:
        await connection.execute(HOLD_OFFSET, *partition_key(progress.partition), progress.start)


def superseded(change: Change) -> list[Session]:
    """The sessions that are not current and not in the archive as they are now."""
    archived = change.before.sessions[:-1]
    return [session for session in change.after.sessions[:-1] if session not in archived]


def partition_key(partition: Partition) -> tuple[str, str, int]:
    return partition.group, partition.topic, partition.number


def session_from_row(
    number: int, status: str, opened_at: datetime, accepted_at: Any, accepted_by: Any, *rest: Any
) -> Session:
    return Session(number, _STATUS[status], opened_at, accepted_at, _AUTHOR.get(accepted_by), *rest)
