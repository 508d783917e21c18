"""The store: what the service, the workers, the ticker, the relay and the commands ask of the database."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from consumer.errors import ConfigurationError, ContentionError, UnavailableError
from consumer.history.comparison import Stored
from consumer.lifecycle.model import Conversation, HistoryRow, Session
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.outbox import Backlog
from consumer.postgres import citus, pruning, timers
from consumer.postgres.attempt import (
    LOAD,
    OF_PARTITION,
    PostgresAttempt,
    load,
    lock,
    partition_key,
    session_from_row,
    transaction,
)
from consumer.postgres.client import APPLICATION, keeps_its_session, on_citus, set_for_transaction
from consumer.postgres.conversations import (
    HISTORY,
    about_how_many,
    archived_sessions,
    history_row,
    ids_after,
    read_stored,
)
from consumer.postgres.distribution import Layout, read_layout
from consumer.postgres.errors import contention_is_outage
from consumer.postgres.few import AttemptOfFew
from consumer.postgres.histories import HistoryPage, history_pages
from consumer.postgres.locks import END_SILENT, find_holder
from consumer.postgres.outbox import OUTBOX, PostgresOutboxBatch, backlog, take_turn
from consumer.postgres.pool import Pool, create_engine
from consumer.postgres.repair import count_rows, delete_rows, write_repaired
from consumer.postgres.reports import ConversationReport, RaceReport, conversation_report, race_report
from consumer.postgres.server_settings import NAMES, READ_SETTINGS, ServerSetting
from consumer.postgres.tables import schema_revision
from consumer.service.ports import NO_CONVERSATIONS, Conversations, EventsById, LockHolder, Locking
from consumer.settings import DatabaseSettings
from consumer.ticker import DueTimer

_STORED_OFFSET = f"SELECT cluster_id, next_offset, mark FROM kafka_offset WHERE {OF_PARTITION}"
_CREATE_OFFSET = "INSERT INTO kafka_offset VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING"
_SET_OFFSET = """
    INSERT INTO kafka_offset VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (consumer_group, topic, partition) DO UPDATE SET cluster_id = $4, next_offset = $5, mark = $6"""

_OFFSETS = "the table kafka_offset, or rows of it"
_TIMERS = "the table conversation"
_LOOK_UP_SECONDS = 0.9


class PostgresStore:
    """Each method takes a connection of the pool, or a transaction, for what it asks."""

    few = 32
    """The most events of an `AttemptOfFew`."""

    def __init__(self, engine: AsyncEngine, metrics: Metrics | None = None) -> None:
        self._engine = engine
        self._pool = Pool(engine)
        self._metrics = metrics or Metrics()
        self._metrics.db_pool_connections.labels("in_use").set_function(lambda: self._pool.in_use)
        self._metrics.db_pool_connections.labels("idle").set_function(lambda: self._pool.idle)
        self._metrics.db_pool_connections.labels("unopened").set_function(lambda: self._pool.unopened)

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: DatabaseSettings, metrics: Metrics | None = None) -> AsyncIterator["PostgresStore"]:
        """A store with a pool of its own, closed at the end. Nothing is connected until it is used."""
        engine = create_engine(settings)
        try:
            yield cls(engine, metrics)
        finally:
            await engine.dispose()

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator[PostgresAttempt]:
        async with self._connection("save") as connection:
            is_few = sum(map(len, events.values())) <= self.few
            if is_few and locking is Locking.OPTIMISTIC and keeps_its_session(connection):
                yield AttemptOfFew(connection, await load(connection, events, cached), progress, locking)
                return
            async with transaction(connection, progress):
                if locking is Locking.PESSIMISTIC:
                    await lock(connection, list(events))
                yield PostgresAttempt(connection, await load(connection, events, cached), progress, locking)

    async def take_due_timers(self, limit: int, since: datetime | None = None) -> list[DueTimer]:
        """See `ticker.Timers`. A timer whose row somebody else locks is left for a later call."""
        with contention_is_outage(_TIMERS):
            async with self._transaction("timers") as connection:
                return await timers.take_due(connection, limit, since)

    async def overdue(self) -> int:
        """See `ticker.Timers`."""
        with contention_is_outage(_TIMERS):
            async with self._connection("load") as connection:
                return await timers.overdue(connection)

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        with contention_is_outage(_OFFSETS):
            async with self._connection("load") as connection:
                row = await connection.fetchrow(_STORED_OFFSET, *partition_key(partition))
        return StoredOffset(*row) if row else None

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """Inserts the row at a partition's first assignment. A row that exists stays as it is."""
        key = partition_key(partition)
        with contention_is_outage(_OFFSETS):
            async with self._transaction("save") as connection:
                await connection.execute(_CREATE_OFFSET, *key, offset.cluster_id, offset.next_offset)

    async def stored_offsets(self) -> list[tuple[Partition, StoredOffset]]:
        """The offsets of all groups, by group, topic and partition."""
        sql = (
            "SELECT consumer_group, topic, partition, cluster_id, next_offset, mark FROM kafka_offset ORDER BY 1, 2, 3"
        )
        async with self._connection("load") as connection:
            return [(Partition(*row[:3]), StoredOffset(*row[3:])) for row in await connection.fetch(sql)]

    async def set_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """Sets where the partition goes on, whatever was stored: an operator's decision.

        The fencing token is a new one: an owner that has not heard of it, perhaps in another cluster, writes no more.
        """
        row = (*partition_key(partition), offset.cluster_id, offset.next_offset, secrets.randbits(63))
        async with self._transaction("save") as connection:
            await connection.execute(_SET_OFFSET, *row)

    async def answers(self) -> bool:
        """Whether the database can be used now; on Citus, each worker that has conversations."""
        try:
            async with self._connection("load") as connection:
                await connection.execute(citus.ASK_EVERY_SHARD if on_citus(connection) else "SELECT 1")
        except (UnavailableError, ConfigurationError):
            return False
        return True

    async def now(self) -> datetime:
        """The database's clock, which all decisions go by."""
        async with self._connection("load") as connection:
            at: datetime = await connection.fetchval("SELECT clock_timestamp()")
            return at

    async def is_standby(self) -> bool:
        """Whether the server takes no writes because it follows another one."""
        async with self._connection("load") as connection:
            return bool(await connection.fetchval("SELECT pg_is_in_recovery()"))

    async def schema_revision(self) -> str | None:
        """The newest migration that was applied; null on a database without any."""
        async with self._connection("load") as connection:
            return await schema_revision(connection)

    async def server_settings(self) -> list[ServerSetting]:
        """Those that `server_settings` has advice about, as they are for this connection."""
        async with self._connection("load") as connection:
            return [ServerSetting(*row) for row in await connection.fetch(READ_SETTINGS, NAMES)]

    async def layout(self) -> Layout | None:
        """How the tables are distributed; null where the extension Citus is not installed."""
        async with self._connection("load") as connection:
            return await read_layout(connection)

    async def conversation(self, conversation_id: str) -> tuple[list[Session], int]:
        """All sessions of a conversation, ascending, and its version; an unknown one has none, at version 0."""
        async with self._connection("load") as connection:
            archived = await archived_sessions(connection, [conversation_id])
            current = await connection.fetch(LOAD, [conversation_id])
        sessions = archived.get(conversation_id, []) + [session_from_row(*row[2:]) for row in current]
        return sessions, current[0][1] if current else 0

    async def history(self, conversation_id: str) -> list[tuple[HistoryRow, datetime]]:
        """The history rows of a conversation, each with the time of its decision, by version."""
        async with self._connection("load") as connection:
            return [(history_row(*row[:-1]), row[-1]) for row in await connection.fetch(HISTORY, conversation_id)]

    async def stored(self, conversation_ids: Sequence[str]) -> list[Stored]:
        """All that is stored of these conversations, at one moment."""
        async with (
            self._connection("load") as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            await set_for_transaction(connection)
            return await read_stored(connection, conversation_ids)

    async def ids_after(self, conversation_id: str, limit: int) -> list[str]:
        """The next ids in order, also of conversations that have lost their row."""
        async with self._connection("load") as connection:
            return await ids_after(connection, conversation_id, limit)

    async def about_how_many(self) -> int:
        """How many conversations there are, roughly if there are many."""
        async with self._connection("load") as connection:
            return await about_how_many(connection)

    async def write_repaired(self, target: Conversation, loaded: int) -> None:
        """Writes a conversation as its next version, with a history row of its own that changes no status.

        Raises `ContentionError` if its row is no longer at version `loaded`, or is locked.
        """
        async with self._transaction("save") as connection:
            await write_repaired(connection, target, loaded)

    async def count_rows(self, conversation_id: str) -> dict[str, int]:
        """Table -> how many rows `forget` would delete."""
        async with self._connection("load") as connection:
            return await count_rows(connection, conversation_id)

    async def forget(self, conversation_id: str) -> dict[str, int]:
        """Deletes every row of a conversation; by table, how many. Whoever has it cached will not use that again.

        Raises `ContentionError` while somebody holds a row or an offset for long. Workers wait for the moment.
        """
        async with self._transaction("save") as connection:
            return await delete_rows(connection, conversation_id, secrets.randbits(63))

    def histories(self, since: datetime, until: datetime) -> AsyncIterator[HistoryPage]:
        """See `histories.history_pages`."""
        return history_pages(self._connection, since, until)

    async def conversation_report(self, since: datetime, until: datetime) -> ConversationReport:
        async with self._transaction("load") as connection:
            return await conversation_report(connection, since, until)

    async def race_report(self, since: datetime, until: datetime) -> RaceReport:
        async with self._transaction("load") as connection:
            return await race_report(connection, since, until)

    async def lock_holder(self, conversation_id: str) -> LockHolder | None:
        """Who holds the row of a conversation, or is inserting it; null if nobody does. Takes a second at most.

        Raises `UnavailableError`, never because the row is held.
        """
        with suppress(TimeoutError, ContentionError):
            async with (
                asyncio.timeout(_LOOK_UP_SECONDS),
                self._connection("load") as waiting,
                self._connection("load") as watching,
            ):
                return await find_holder(waiting, watching, conversation_id)
        return None

    async def end_silent_sessions(self, seconds: float) -> int:
        """Ends sessions of ours, of any process, that wait within a statement for a silent client; how many.

        `seconds`: how long the statement has taken, at least; its client has given it up. Raises `UnavailableError`.
        """
        async with self._connection("load") as connection:
            return int(await connection.fetchval(END_SILENT, APPLICATION, seconds))

    @asynccontextmanager
    async def turn(self, limit: int, seconds: float) -> AsyncIterator[PostgresOutboxBatch | None]:
        """See `outbox.Outbox`."""
        with contention_is_outage(OUTBOX):
            async with self._transaction("outbox") as connection:
                yield await take_turn(connection, limit, seconds)

    async def backlog(self) -> Backlog:
        """See `outbox.Outbox`."""
        with contention_is_outage(OUTBOX):
            async with self._connection("load") as connection:
                return await backlog(connection)

    async def history_size(self) -> tuple[int, int]:
        """Pages of the history's table, and bytes of a page."""
        async with self._connection("load") as connection:
            return await pruning.history_size(connection)

    async def count_old(self, pages: range, before: datetime) -> int:
        """How many rows `prune` would remove."""
        async with self._connection("load") as connection:
            return await pruning.count_old(connection, pages, before)

    async def prune(self, pages: range, before: datetime) -> int:
        """Removes the history on these pages of its table that was recorded before a time. Returns how many rows.

        Takes no lock that a writer of conversations waits for. Raises `ContentionError` while another pruning, or a
        change of the table, holds a lock.
        """
        async with self._transaction("prune") as connection:
            return await pruning.prune(connection, pages, before)

    @asynccontextmanager
    async def _transaction(self, operation: str) -> AsyncIterator[asyncpg.Connection]:
        async with self._connection(operation) as connection, transaction(connection, None):
            yield connection

    @asynccontextmanager
    async def _connection(self, operation: str) -> AsyncIterator[asyncpg.Connection]:
        """See `Pool.connection`. The time that it is held is measured."""
        started = time.perf_counter()
        try:
            async with self._pool.connection() as connection:
                yield connection
        finally:
            self._metrics.db_transaction.labels(operation).observe(time.perf_counter() - started)
