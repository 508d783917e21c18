"""PostgreSQL: the tables, the store and the stored offsets. The only SQL; driver errors are classified here, once.

Rows travel as arrays of rows, or by COPY: one statement per table and batch, whatever the number of conversations.
SQLAlchemy owns tables and pool; the statements go to the driver itself, which takes half the time for them.
"""

import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import asyncpg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from consumer.conversation import (
    Author,
    Change,
    Conversation,
    HistoryRow,
    Identity,
    Kind,
    Outcome,
    Session,
    Status,
    Tick,
    reaches_back,
)
from consumer.errors import (
    ConfigurationError,
    ConnectionLostError,
    ConsumerError,
    ContentionError,
    RefusedError,
    StaleOwnerError,
    TooSlowError,
    UnavailableError,
)
from consumer.metrics import Metrics
from consumer.service import (
    NONE,
    Conversations,
    Decided,
    EventsById,
    Locking,
    Lost,
    Partition,
    Progress,
    Snapshot,
    StoredOffset,
)
from consumer.settings import DatabaseSettings
from consumer.ticker import Alarm

BISECT_SECONDS = 1.0
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
metadata = sa.MetaData()
_ID = sa.Text(collation="C")
_TIME = sa.DateTime(timezone=True)


def _session_columns() -> list[sa.Column[Any]]:
    """The columns that `conversation` and its archive share: the fields of `Session`, in their order."""
    return [
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("opened_at", _TIME, nullable=False),
        sa.Column("accepted_at", _TIME),
        sa.Column("accepted_by", sa.Text),
        sa.Column("last_activity_at", _TIME, nullable=False),
        sa.Column("last_user_message_at", _TIME),
        sa.Column("last_agent_message_at", _TIME),
        sa.Column("user_messages", sa.Integer, nullable=False),
        sa.Column("agent_messages", sa.Integer, nullable=False),
        sa.Column("idle_at", _TIME),
        sa.Column("expires_at", _TIME),
        sa.Column("closed_at", _TIME),
        sa.Column("closed_by", sa.Text),
        sa.Column("close_reason", sa.Text),
        sa.Column("reclassified_at", _TIME),
    ]


conversation = sa.Table(
    "conversation",
    metadata,
    sa.Column("conversation_id", _ID, primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    *_session_columns(),
    sa.Column("wake_at", _TIME),
    sa.CheckConstraint("(closed_at IS NULL) = (expires_at IS NOT NULL)", name="conversation_open_or_closed"),
)
sa.Index("conversation_wake_at", conversation.c.wake_at, postgresql_where=conversation.c.wake_at.is_not(None))

conversation_session_archive = sa.Table(
    "conversation_session_archive",
    metadata,
    sa.Column("conversation_id", _ID),
    *_session_columns(),
    sa.PrimaryKeyConstraint("conversation_id", "session"),
)

conversation_event = sa.Table(
    "conversation_event",
    metadata,
    sa.Column("conversation_id", _ID),
    sa.Column("source", _ID),
    sa.Column("event_id", _ID),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("occurred_at", _TIME, nullable=False),
    sa.Column("recorded_at", _TIME, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("requested", sa.Text),
    sa.Column("from_status", sa.Text),
    sa.Column("to_status", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.PrimaryKeyConstraint("conversation_id", "source", "event_id"),
)

transition_outbox = sa.Table(
    "transition_outbox",
    metadata,
    sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
    sa.Column("conversation_id", _ID, nullable=False),
    sa.Column("session", sa.Integer, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("from_status", sa.Text),
    sa.Column("to_status", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("occurred_at", _TIME, nullable=False),
)

kafka_offset = sa.Table(
    "kafka_offset",
    metadata,
    sa.Column("consumer_group", _ID),
    sa.Column("topic", _ID),
    sa.Column("partition", sa.Integer),
    sa.Column("cluster_id", sa.Text, nullable=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
    sa.Column("mark", sa.BigInteger, nullable=False, server_default="0"),
    sa.PrimaryKeyConstraint("consumer_group", "topic", "partition"),
)

_SESSION_COLUMNS = tuple(column.name for column in _session_columns())
_HISTORY_COLUMNS = tuple("type" if name == "kind" else name for name in HistoryRow._fields)
_OUTBOX_COLUMNS = tuple(column.name for column in transition_outbox.c if column.name != "id")
_OUTBOX_FIELDS = attrgetter(*_OUTBOX_COLUMNS)
_SESSION_LIST = ", ".join(_SESSION_COLUMNS)
_STATUS = {status.value: status for status in Status}
_AUTHOR = {author.value: author for author in Author}

_LOOK = """
    SELECT clock_timestamp(), NULL, NULL, NULL
    UNION ALL
    SELECT NULL, c.conversation_id, NULL, NULL FROM unnest($1::conversation_version[]) AS k
    JOIN conversation AS c ON c.conversation_id = k.conversation_id AND c.version <> k.version
    UNION ALL
    SELECT NULL, e.conversation_id, e.source, e.event_id FROM unnest($2::event_identity[]) AS k
    JOIN conversation_event AS e USING (conversation_id, source, event_id)"""
_LOAD = f"SELECT conversation_id, version, {_SESSION_LIST} FROM conversation WHERE conversation_id = ANY($1::text[])"
_LOAD_ARCHIVE = f"""
    SELECT conversation_id, {_SESSION_LIST} FROM conversation_session_archive
    WHERE conversation_id = ANY($1::text[]) ORDER BY conversation_id, session"""
_LOCK = "SELECT conversation_id FROM conversation WHERE conversation_id = ANY($1::text[]) ORDER BY 1 FOR NO KEY UPDATE"
_UPDATE = f"""
    UPDATE conversation AS c SET version = n.version, {", ".join(f"{name} = n.{name}" for name in _SESSION_COLUMNS)},
        wake_at = CASE WHEN n.expires_at IS NOT NULL THEN LEAST(c.wake_at, n.idle_at, n.expires_at) END
    FROM unnest($1::conversation_write[]) AS n
    WHERE c.conversation_id = n.conversation_id AND c.version = n.loaded
    RETURNING c.conversation_id"""
_INSERT = f"""
    INSERT INTO conversation (conversation_id, version, {_SESSION_LIST}, wake_at)
    SELECT conversation_id, version, {_SESSION_LIST}, LEAST(idle_at, expires_at) FROM unnest($1::conversation_write[])
    ON CONFLICT DO NOTHING RETURNING conversation_id"""
_ARCHIVE = f"""
    INSERT INTO conversation_session_archive (conversation_id, {_SESSION_LIST})
    SELECT conversation_id, {_SESSION_LIST} FROM unnest($1::conversation_write[])
    ON CONFLICT (conversation_id, session) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _SESSION_COLUMNS if name != "session")}"""
_OF_PARTITION = "consumer_group = $1 AND topic = $2 AND partition = $3"
_ADVANCE = f"""
    UPDATE kafka_offset SET next_offset = $6, mark = $7 WHERE {_OF_PARTITION} AND next_offset = $4 AND mark = $5
    RETURNING 1"""
_STAY = f"UPDATE kafka_offset SET next_offset = $4 WHERE {_OF_PARTITION}"
_STORED_OFFSET = f"SELECT cluster_id, next_offset, mark FROM kafka_offset WHERE {_OF_PARTITION}"
_CREATE_OFFSET = "INSERT INTO kafka_offset VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
_DEADLINE = "LEAST(idle_at, expires_at)"
_RING = f"""
    UPDATE conversation AS c SET wake_at = CASE
        WHEN due.deadline >= due.now THEN due.deadline
        ELSE due.now + LEAST(GREATEST(due.now - due.deadline, interval '60 s'), interval '15 min') END
    FROM (
        SELECT conversation_id, {_DEADLINE} AS deadline, statement_timestamp() AS now FROM conversation
        WHERE wake_at <= statement_timestamp() ORDER BY wake_at LIMIT $1 FOR NO KEY UPDATE SKIP LOCKED
    ) AS due WHERE c.conversation_id = due.conversation_id
    RETURNING c.conversation_id, due.deadline, due.now"""
_OVERDUE = f"""
    SELECT count(*) FROM conversation
    WHERE wake_at < now() + interval '15 min' AND {_DEADLINE} < now() - interval '60 s'"""
_HISTORY_SIZE = "SELECT pg_relation_size('conversation_event'), current_setting('block_size')::int"
# By page: rows of the history never move, so each is seen once, and no insert pays for an index. Not even a BRIN would
# serve: new rows fill the space that pruning frees, and soon every page range holds rows of every age.
# By `recorded_at`: a row written after its record entered the log outlasts the record; an event may be dated at will.
_OLD = "FROM conversation_event WHERE ctid >= $1 AND ctid < $2 AND recorded_at < $3"
_COUNT_OLD = f"SELECT count(*) {_OLD}"
_PRUNE = f"WITH gone AS (DELETE {_OLD} RETURNING 1) SELECT count(*) FROM gone"
_SET_OFFSET = """
    INSERT INTO kafka_offset VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET cluster_id = $4, next_offset = $5, mark = 0"""


class PostgresStore:
    """The store of the service and of the workers' offsets."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics | None = None) -> None:
        self._engine = engine
        self._metrics = metrics or Metrics()
        self._metrics.db_pool_connections.labels("in_use").set_function(lambda: _pool(engine).checkedout())
        self._metrics.db_pool_connections.labels("idle").set_function(lambda: _pool(engine).checkedin())

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: DatabaseSettings, metrics: Metrics | None = None) -> AsyncIterator["PostgresStore"]:
        """A store with a pool of its own, closed at the end. Nothing is connected until it is used."""
        engine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: connected(settings),
            pool_size=settings.writers + 1,
            max_overflow=0,
            pool_timeout=settings.command_timeout_seconds,
            isolation_level="AUTOCOMMIT",
            # Nothing is left to roll back: every transaction is a block of the driver's.
            pool_reset_on_return=None,
        )
        try:
            yield cls(engine, metrics)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, remembered: Conversations = NONE
    ) -> AsyncIterator["PostgresAttempt"]:
        async with self._transaction("save", progress) as connection:
            if locking is Locking.PESSIMISTIC:
                await connection.fetch(_LOCK, list(events))
            yield PostgresAttempt(connection, await _load(connection, events, remembered), progress, locking)

    async def ring(self, limit: int) -> list[Alarm]:
        """See `ticker.Alarms`. Rows that somebody else holds are left to ring again."""
        async with self._transaction("ring", None) as connection:
            return [Alarm(*row) for row in await connection.fetch(_RING, limit)]

    async def overdue(self) -> int:
        """See `ticker.Alarms`. What is overdue has an alarm within the next quarter of an hour."""
        async with self._connection("load") as connection:
            return int(await connection.fetchval(_OVERDUE))

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        async with self._connection("load") as connection:
            row = await connection.fetchrow(_STORED_OFFSET, *_key(partition))
        return StoredOffset(*row) if row else None

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """Makes the row at a partition's first assignment; one that is there stays as it is."""
        async with self._transaction("save", None) as connection:
            await connection.execute(_CREATE_OFFSET, *_key(partition), offset.cluster_id, offset.next_offset)

    async def stored_offsets(self) -> list[tuple[Partition, StoredOffset]]:
        """All of them, by group, topic and partition."""
        sql = (
            "SELECT consumer_group, topic, partition, cluster_id, next_offset, mark FROM kafka_offset ORDER BY 1, 2, 3"
        )
        async with self._connection("load") as connection:
            return [(Partition(*row[:3]), StoredOffset(*row[3:])) for row in await connection.fetch(sql)]

    async def set_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """An operator's decision: where the partition goes on, whatever was stored."""
        async with self._transaction("save", None) as connection:
            await connection.execute(_SET_OFFSET, *_key(partition), offset.cluster_id, offset.next_offset)

    async def answers(self) -> bool:
        """Whether the database can be reached now."""
        try:
            async with self._connection("load") as connection:
                await connection.execute("SELECT 1")
        except UnavailableError:
            return False
        return True

    async def now(self) -> datetime:
        """The clock that all decisions go by."""
        async with self._connection("load") as connection:
            at: datetime = await connection.fetchval("SELECT clock_timestamp()")
            return at

    async def schema_revision(self) -> str | None:
        """The newest migration applied; null on a database without any."""
        async with self._connection("load") as connection:
            if await connection.fetchval("SELECT to_regclass('alembic_version')") is None:
                return None
            return str(await connection.fetchval("SELECT version_num FROM alembic_version"))

    async def conversation(self, conversation_id: str) -> tuple[list[Session], int]:
        """All sessions of a conversation, ascending, and its version; an unknown one has none, at version 0."""
        async with self._connection("load") as connection:
            archived = await connection.fetch(_LOAD_ARCHIVE, [conversation_id])
            current = await connection.fetch(_LOAD, [conversation_id])
        sessions = [_session(*row[1:]) for row in archived] + [_session(*row[2:]) for row in current]
        return sessions, current[0][1] if current else 0

    async def history(self, conversation_id: str) -> list[tuple[HistoryRow, datetime]]:
        """The rows of a conversation with the time they were decided, by version."""
        columns = ", ".join((*_HISTORY_COLUMNS, "recorded_at"))
        sql = f"SELECT {columns} FROM conversation_event WHERE conversation_id = $1 ORDER BY version"
        async with self._connection("load") as connection:
            return [(_history_row(*row[:-1]), row[-1]) for row in await connection.fetch(sql, conversation_id)]

    async def history_size(self) -> tuple[int, int]:
        """Pages of the history's table, and bytes of a page."""
        async with self._connection("load") as connection:
            table, page = await connection.fetchrow(_HISTORY_SIZE)
            return table // page, page

    async def count_old(self, pages: range, before: datetime) -> int:
        """How many rows `prune` would remove."""
        async with self._connection("load") as connection:
            return int(await connection.fetchval(_COUNT_OLD, *_bounds(pages), before))

    async def prune(self, pages: range, before: datetime) -> int:
        """Removes the history that lies on these pages of its table and was recorded before a time; how many rows.

        Takes no lock that a writer of conversations waits for. Raises `ContentionError` if another pruning, or somebody
        who alters the table, is in the way.
        """
        async with self._transaction("prune", None) as connection:
            return int(await connection.fetchval(_PRUNE, *_bounds(pages), before))

    @asynccontextmanager
    async def _transaction(self, operation: str, progress: Progress | None) -> AsyncIterator[asyncpg.Connection]:
        """A transaction under the guard of `progress`. It is never cancelled: workers stop between batches."""
        async with self._connection(operation) as connection, connection.transaction():
            if progress is not None:
                await _advance(connection, progress)
            yield connection

    @asynccontextmanager
    async def _connection(self, operation: str) -> AsyncIterator[asyncpg.Connection]:
        """One of the pool; each statement commits for itself, unless in a transaction. Errors are classified."""
        started = time.perf_counter()
        try:
            with classified():
                async with self._engine.connect() as pooled:
                    yield (await pooled.get_raw_connection()).driver_connection
        except ConnectionLostError:
            # Not closed one by one: each would wait for a server that may not answer.
            await self._engine.dispose(close=False)
            raise
        finally:
            self._metrics.db_transaction.labels(operation).observe(time.perf_counter() - started)


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


def _pool(engine: AsyncEngine) -> sa.QueuePool:
    """The pool of now: an outage replaces it."""
    assert isinstance(engine.pool, sa.QueuePool)
    return engine.pool


async def _advance(connection: asyncpg.Connection, progress: Progress) -> None:
    """The guard: moves the partition's offset, if it is where it was left, and so holds it until the commit.

    Another owner still holding it is an outage: it will be timed out.
    """
    here = _key(progress.partition)
    try:
        with classified():
            moved = await connection.fetch(
                _ADVANCE, *here, progress.start, progress.mark, progress.end, progress.next_mark
            )
    except ContentionError as error:
        raise UnavailableError("another owner holds the partition's offset row") from error
    if not moved:
        raise StaleOwnerError(
            f"{progress.partition.topic}[{progress.partition.number}] is no longer as it was left at {progress.start}"
        )


async def _load(connection: asyncpg.Connection, events: EventsById, remembered: Conversations) -> Snapshot:
    """Rows before ids, or both at once: a version that still stands at the save proves the known ids complete."""
    versions = [(key, remembered[key].version if key in remembered else 0) for key in events]
    now, changed, known = await _look(connection, versions, _identities(events, remembered))
    found = dict(remembered)
    if changed:
        for row in await connection.fetch(_LOAD, changed):
            found[row[0]] = Conversation(row[0], row[1], (_session(*row[2:]),))
        now, _, known_by_now = await _look(connection, (), _identities(events, changed))
        known |= known_by_now
    older = [key for key, known_as in found.items() if reaches_back(known_as, events[key], now)]
    for row in await connection.fetch(_LOAD_ARCHIVE, older) if older else ():
        *archived, current = found[row[0]].sessions
        found[row[0]] = found[row[0]]._replace(sessions=(*archived, _session(*row[1:]), current))
    return Snapshot(now, found, known)


async def _look(
    connection: asyncpg.Connection, versions: Collection[tuple[str, int]], identities: Collection[tuple[str, str, str]]
) -> tuple[datetime, list[str], dict[str, set[Identity]]]:
    """Now, the conversations that are at other versions than these, and the events that are known: as of one moment."""
    (now, *_), *answer = await connection.fetch(_LOOK, versions, identities)
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
    await _follow(connection, [change for change in changes if change.after.id in won], decided.now)
    lost = {change.after.id: "version" for change in changes if change.after.id not in won}
    await _stay(connection, progress, lost)
    return lost


async def _save_unlocked(connection: asyncpg.Connection, decided: Decided, progress: Progress | None) -> Lost:
    """As `_save`, but a row that somebody holds is lost at once instead of waited for."""
    changes = _writing(decided)
    free = {row[0] for row in await connection.fetch(f"{_LOCK} SKIP LOCKED", [c.after.id for c in changes])}
    won = await _update(connection, [change for change in changes if change.after.id in free])
    new = [change for change in changes if change.before.version == 0]
    won |= await _insert_unblocked(connection, new, time.monotonic() + BISECT_SECONDS)
    await _follow(connection, [change for change in changes if change.after.id in won], decided.now)
    lost = {c.after.id: "version" if c.after.id in free else "lock" for c in changes if c.after.id not in won}
    await _stay(connection, progress, lost)
    return lost


def _writing(decided: Decided) -> list[Change]:
    """The changes that write, in the order in which every writer locks rows."""
    return sorted((change for change in decided.changes if change.rows), key=lambda change: change.after.id)


async def _update(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [_written(change, change.after.sessions[-1]) for change in changes if change.before.version]
    return {row[0] for row in await connection.fetch(_UPDATE, rows)} if rows else set()


async def _insert(connection: asyncpg.Connection, changes: Iterable[Change]) -> set[str]:
    rows = [_written(change, change.after.sessions[-1]) for change in changes]
    return {row[0] for row in await connection.fetch(_INSERT, rows)} if rows else set()


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


async def _follow(connection: asyncpg.Connection, won: Sequence[Change], now: datetime) -> None:
    """What goes with the winners' rows: archived sessions, history, outbox."""
    several = [change for change in won if len(change.after.sessions) > 1]
    if archived := [_written(change, session) for change in several for session in _superseded(change)]:
        await connection.execute(_ARCHIVE, archived)
    history = [(*row, now) for change in won for row in change.rows]
    if history:
        await connection.copy_records_to_table(
            "conversation_event", columns=(*_HISTORY_COLUMNS, "recorded_at"), records=history
        )
    if transitions := [_OUTBOX_FIELDS(row) for change in won for row in change.rows if row.is_transition]:
        await connection.copy_records_to_table("transition_outbox", columns=_OUTBOX_COLUMNS, records=transitions)


async def _stay(connection: asyncpg.Connection, progress: Progress | None, lost: Lost) -> None:
    """The offset waits for those that have lost."""
    if progress is not None and lost:
        await connection.execute(_STAY, *_key(progress.partition), progress.start)


def _superseded(change: Change) -> list[Session]:
    """The sessions that are not current and not in the archive as they are now."""
    archived = change.before.sessions[:-1]
    return [session for session in change.after.sessions[:-1] if session not in archived]


def _bounds(pages: range) -> tuple[tuple[int, int], tuple[int, int]]:
    return (pages.start, 0), (pages.stop, 0)


def _key(partition: Partition) -> tuple[str, str, int]:
    return partition.group, partition.topic, partition.number


def _session(number: int, status: str, opened_at: datetime, accepted_at: Any, accepted_by: Any, *rest: Any) -> Session:
    return Session(number, _STATUS[status], opened_at, accepted_at, _AUTHOR.get(accepted_by), *rest)


def _history_row(*values: Any) -> HistoryRow:
    row = HistoryRow(*values)
    return row._replace(
        kind=Kind(row.kind),
        outcome=Outcome(row.outcome),
        from_status=row.from_status and Status(row.from_status),
        to_status=Status(row.to_status),
    )


async def connected(settings: DatabaseSettings) -> asyncpg.Connection:
    """A connection of the driver's, as the store uses it."""
    connection = await asyncpg.connect(**_connect_arguments(settings))
    # The driver's own way takes twice as long, and times are most of what is written.
    await connection.set_type_codec("timestamptz", schema="pg_catalog", encoder=_ticks, decoder=_moment, format="tuple")
    return connection


def _ticks(at: datetime) -> tuple[int]:
    """A time as PostgreSQL keeps it: microseconds since 2000."""
    since = at - _POSTGRES_EPOCH
    return (since.days * 86_400_000_000 + since.seconds * 1_000_000 + since.microseconds,)


def _moment(ticks: tuple[int]) -> datetime:
    return _POSTGRES_EPOCH + timedelta(microseconds=ticks[0])


def _connect_arguments(settings: DatabaseSettings) -> dict[str, Any]:
    """Every wait has a limit, so that neither a stalled server nor a stalled owner holds others for long."""
    return {
        "dsn": settings.url.get_secret_value(),
        "timeout": settings.connect_timeout_seconds,
        "command_timeout": settings.command_timeout_seconds,
        "server_settings": {
            "application_name": "conversation-consumer",
            "statement_timeout": _milliseconds(settings.statement_timeout_seconds),
            "lock_timeout": _milliseconds(settings.lock_timeout_seconds),
            "idle_in_transaction_session_timeout": _milliseconds(settings.idle_in_transaction_timeout_seconds),
            **_SAME_PLAN,
        },
    }


_SAME_PLAN = {"jit": "off", "enable_seqscan": "off", "enable_hashjoin": "off", "enable_mergejoin": "off"}
"""Every statement looks its rows up by key, whatever the statistics say of a table that has just begun to grow."""


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


_CONTENTION = {"40001": "serialization", "40P01": "deadlock", "55P03": "lock", "23505": "duplicate"}
_REFUSED = ("22", "54", "23514")
_MISCONFIGURED = {
    "42P01": "the database's tables are not there: run `conversation-consumer migrate`",
    "3D000": "the database does not exist: create it, or check CONSUMER_DATABASE__URL",
    "42501": "the database user may not do this: grant it, or check CONSUMER_DATABASE__URL",
}
_TOO_SLOW = "57014"
_UNAVAILABLE = ("08", "53", "57", "58", "28", "25006", "25P03", "25P04", "0A000")


@contextmanager
def classified() -> Iterator[None]:
    """Translates what the driver raises, by SQLSTATE. A programming error stays what it is."""
    try:
        yield
    except (sa.exc.DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.PostgresError):
            error.detail = None  # may quote the row
        if (known := _classify(error)) is None:
            raise
        raise known from error
    except asyncpg.InternalClientError as error:  # the server's goodbye has arrived, the end of the connection has not
        raise ConnectionLostError("the database has ended the connection") from error
    except UnicodeEncodeError as error:
        raise RefusedError("a value cannot be encoded") from error
    except TimeoutError as error:
        raise TooSlowError("no answer from the database in time") from error
    except sa.exc.TimeoutError as error:
        raise UnavailableError("no connection of the pool came free in time") from error
    except OSError as error:
        raise ConnectionLostError(f"no answer from the database: {type(error).__name__}: {error}") from error


def _of_writers_and_settings(state: str) -> ConsumerError | None:
    if state in _CONTENTION:
        return ContentionError(_CONTENTION[state])
    return ConfigurationError(_MISCONFIGURED[state]) if state in _MISCONFIGURED else None


def _classify(error: Exception) -> ConsumerError | None:
    wrapped = error if isinstance(error, sa.exc.DBAPIError) else None
    cause = (wrapped.orig and wrapped.orig.__cause__) or wrapped.orig if wrapped else error
    state = str(getattr(cause, "sqlstate", None) or "")
    if known := _of_writers_and_settings(state):
        return known
    if state.startswith(_REFUSED) or isinstance(cause, asyncpg.DataError):
        return RefusedError(f"PostgreSQL refused a value (SQLSTATE {state or 'none'})")
    if state == _TOO_SLOW or isinstance(cause, TimeoutError):
        return TooSlowError("a statement took longer than CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS")
    if isinstance(cause, asyncpg.ClientConfigurationError):
        return ConfigurationError("CONSUMER_DATABASE__URL is not an address that the driver understands")
    lost = isinstance(cause, asyncpg.InterfaceError | OSError) or (wrapped and wrapped.connection_invalidated)
    if lost or state.startswith(_UNAVAILABLE):
        return ConnectionLostError(f"the database is unavailable (SQLSTATE {state or 'none'}): {type(cause).__name__}")
    return None
