"""Stands-in that pass the suites of the real parts."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta

from consumer.errors import ContentionError, TooSlowError, UnavailableError
from consumer.kafka.placement import home_of
from consumer.lifecycle.model import Conversation, HistoryRow, Session, Tick
from consumer.lifecycle.rules import reaches_back
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.outbox import Backlog, OutboxRow
from consumer.postgres.store import PostgresStore
from consumer.service.ports import (
    NO_CONVERSATIONS,
    Conversations,
    Decided,
    EventsById,
    LockHolder,
    Locking,
    Lost,
    Snapshot,
)
from consumer.ticker import DueTimer
from tests.memory_database import (
    OUTBOX,
    MemoryDatabase,
    Statement,
    Transaction,
    UnansweredCommitError,
    at_once,
)


@contextmanager
def contention_is_outage() -> Iterator[None]:
    """See `consumer.postgres.errors`."""
    try:
        yield
    except ContentionError as error:
        raise UnavailableError("another transaction holds it") from error


def needed(current: Session, archived: Sequence[Session], times: Sequence[datetime], now: datetime) -> list[Session]:
    """The archived sessions that events of these times may belong to; where the clock ran back, of later times too."""
    late = [at for at in times if at < current.opened_at]
    of_events = {max((s.number for s in archived if s.opened_at <= at), default=1) for at in (*late, min(now, *times))}
    if current.opened_at > now:
        return [session for session in archived if session.number >= min(of_events)]
    return [session for session in archived if session.number in of_events]


class MemoryTickTopic:
    """`ticker.TickTopic` in memory. A partition may be `away`, so that it acknowledges nothing, or `refuse`."""

    def __init__(self, partitions: int = 4, patience_seconds: float = 15.0) -> None:
        self.published: list[tuple[bytes, bytes]] = []
        self.batches: list[int] = []
        self.refuse: set[int] = set()
        self._patience_seconds = patience_seconds
        self.make(partitions)

    def make(self, partitions: int) -> None:
        """Anew, perhaps with another number of partitions."""
        self._leaders = {number: asyncio.Event() for number in range(partitions)}
        self.come_back(*self._leaders)

    def go_away(self, *partitions: int) -> None:
        for number in partitions:
            self._leaders[number].clear()

    def come_back(self, *partitions: int) -> None:
        for number in partitions:
            self._leaders[number].set()

    async def partitions(self) -> int:
        return len(self._leaders)

    def partition_of(self, key: bytes, partitions: int) -> int:
        return home_of(key, partitions)

    async def publish(self, partition: int, ticks: Sequence[tuple[bytes, bytes]]) -> None:
        if partition in self.refuse:
            raise UnavailableError("the broker refuses")
        try:
            async with asyncio.timeout(self._patience_seconds):
                await self._leaders[partition].wait()
        except TimeoutError as error:
            raise UnavailableError("no answer in time") from error
        self.published += ticks
        self.batches.append(len(ticks))


class MemoryStore:
    """`service.Store`, `worker.Offsets` and `ticker.Timers` of one client of a database in memory."""

    def __init__(
        self, database: MemoryDatabase | None = None, statement: Statement = at_once, few: int = PostgresStore.few
    ) -> None:
        self.database = database or MemoryDatabase()
        self.open: set[Transaction] = set()
        self.few = few
        self._statement = statement

    @property
    def conversations(self) -> dict[str, Conversation]:
        return self.database.conversations

    @property
    def rows(self) -> dict[str, list[tuple[HistoryRow, datetime]]]:
        return self.database.rows

    @property
    def offsets(self) -> dict[Partition, StoredOffset]:
        return self.database.offsets

    async def load(
        self, events: EventsById, transaction: Transaction, cached: Conversations = NO_CONVERSATIONS
    ) -> Snapshot:
        """Three statements, as in PostgreSQL: others may write in between."""
        await transaction.statement("load")
        current = {**cached}
        for key in events:
            found = self.conversations.get(key)
            if found and (key not in cached or found.version != cached[key].version):
                current[key] = found.without_archive()
        await transaction.statement("known and now")
        now = self.database.clock()
        known = {key: self._known(key, events) for key in current}
        older = [key for key, conversation in current.items() if reaches_back(conversation, events[key], now)]
        if older:
            await transaction.statement("archive")
        for key in older:
            archived = self.conversations.get(key, Conversation(key)).sessions[:-1]
            wanted = needed(current[key].sessions[-1], archived, [event.at for event in events[key]], now)
            current[key] = current[key]._replace(sessions=(*wanted, *current[key].sessions))
        return Snapshot(now, current, known)

    def _known(self, key: str, events: EventsById) -> frozenset[tuple[str, str]]:
        asked = {(event.source, event.event_id) for event in events[key] if not isinstance(event, Tick)}
        return frozenset(asked & {(row.source, row.event_id) for row, _ in self.rows.get(key, ())})

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator["MemoryAttempt"]:
        if locking is Locking.OPTIMISTIC and sum(map(len, events.values())) <= self.few:
            async with self._session() as session:
                session.commits_at_once = True
                yield MemoryAttempt(self, session, await self.load(events, session, cached), progress, locking)
            return
        async with self.transaction(progress) as transaction:
            if locking is Locking.PESSIMISTIC:
                await self.lock(transaction, *(key for key in events if key in self.conversations))
            snapshot = await self.load(events, transaction, cached)
            yield MemoryAttempt(self, transaction, snapshot, progress, locking)

    async def save(
        self, decided: Decided, transaction: Transaction, progress: Progress | None, locking: Locking
    ) -> Lost:
        if not transaction.commits_at_once:
            return await transaction.save(decided, progress, wait=locking is not Locking.SKIPPING)
        lost = await transaction.write(decided, progress)
        await self.commit(transaction)
        return lost

    async def lock(self, transaction: Transaction, *keys: str) -> None:
        """Row locks, taken in order."""
        await transaction.statement("lock")
        for key in sorted(keys):
            await transaction.lock(key)

    @asynccontextmanager
    async def transaction(self, progress: Progress | None = None) -> AsyncIterator[Transaction]:
        async with self._session() as transaction:
            if progress is not None:
                await transaction.guard(progress)
            yield transaction
            await self.commit(transaction)

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Transaction]:
        """Ended by a rewind, whatever it holds. Nothing is committed by itself."""
        session = Transaction(self.database, self._statement)
        self.open.add(session)
        try:
            yield session
        finally:
            if not session.is_left:
                session.kill()
            self.open.discard(session)

    async def commit(self, transaction: Transaction) -> None:
        try:
            await transaction.statement("commit")
        except UnansweredCommitError as unanswered:
            transaction.leave_to_the_server(unanswered)
            raise TooSlowError("no answer from the database in time") from unanswered
        transaction.commit()
        await self._statement("committed")

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        with contention_is_outage():
            await self._statement("stored offset")
        return self.offsets.get(partition)

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        with contention_is_outage():
            async with self.transaction() as transaction:
                await transaction.statement("create offset")
                transaction.stage(lambda: self.offsets.update({partition: self.offsets.get(partition, offset)}))

    async def set_offset(self, partition: Partition, offset: StoredOffset) -> None:
        async with self.transaction() as transaction:
            await transaction.statement("set offset")
            await transaction.lock(partition)
            transaction.stage(lambda: self.database.set_offset(partition, offset))

    async def lock_holder(self, conversation_id: str) -> LockHolder | None:
        with suppress(ContentionError):
            await self._statement("lock holder")
        if (holder := self.database.holders.get(conversation_id)) is None:
            return None
        return LockHolder(id(holder), "memory", "somebody", self.database.clock(), "active")

    async def take_due_timers(self, limit: int, since: datetime | None = None) -> Sequence[DueTimer]:
        with contention_is_outage():
            async with self.transaction() as transaction:
                await transaction.statement("due timers")
                now = self.database.clock()
                timers = sorted((at, key) for key, at in self.database.wake_at.items())
                due = [key for at, key in timers if at <= now and (since is None or at >= since)]
                free = [key for key in due if await transaction.lock(key, wait=False)][:limit]
                return [self._push_back(transaction, key, now) for key in free]

    def _push_back(self, transaction: Transaction, key: str, now: datetime) -> DueTimer:
        deadline = self.conversations[key].sessions[-1].deadline
        assert deadline is not None
        was_due = self.database.wake_at[key]
        pause = min(max(now - deadline, timedelta(seconds=60)), timedelta(minutes=15))
        transaction.stage(lambda: self.database.wake_at.update({key: deadline if deadline >= now else now + pause}))
        return DueTimer(key, was_due, deadline, now)

    async def overdue(self) -> int:
        with contention_is_outage():
            await self._statement("overdue")
        limit = self.database.clock() - timedelta(seconds=60)
        deadlines = [found.sessions[-1].deadline for found in self.conversations.values()]
        return sum(deadline is not None and deadline < limit for deadline in deadlines)

    @asynccontextmanager
    async def turn(self, limit: int, seconds: float) -> AsyncIterator["MemoryOutboxBatch | None"]:
        with contention_is_outage():
            async with self.transaction() as transaction:
                await transaction.statement("turn")
                if not await transaction.lock(OUTBOX, wait=False):
                    yield None
                    return
                await transaction.statement("oldest")
                yield MemoryOutboxBatch(transaction, self._oldest(limit))

    def _oldest(self, limit: int) -> list[OutboxRow]:
        return sorted(self.database.outbox.values())[:limit]

    async def backlog(self) -> Backlog:
        with contention_is_outage():
            await self._statement("backlog")
        waits = [(self.database.clock() - row.recorded_at).total_seconds() for row in self.database.outbox.values()]
        return Backlog(len(waits), max(waits, default=0.0))

    async def conversation(self, conversation_id: str) -> tuple[list[Session], int]:
        found = self.conversations.get(conversation_id, Conversation(conversation_id))
        return list(found.sessions), found.version

    async def history(self, conversation_id: str) -> list[tuple[HistoryRow, datetime]]:
        return self.rows.get(conversation_id, [])


class MemoryAttempt:
    """See `service.Attempt`."""

    def __init__(
        self,
        store: MemoryStore,
        transaction: Transaction,
        snapshot: Snapshot,
        progress: Progress | None,
        locking: Locking,
    ) -> None:
        self.snapshot = snapshot
        self._store = store
        self._rest = transaction, progress, locking

    async def save(self, decided: Decided) -> Lost:
        return await self._store.save(decided, *self._rest)


class MemoryOutboxBatch:
    """See `outbox.OutboxBatch`."""

    def __init__(self, transaction: Transaction, rows: Sequence[OutboxRow]) -> None:
        self.rows = rows
        self._transaction = transaction

    async def delete(self) -> None:
        await self._transaction.statement("delete")
        self._transaction.stage(self._delete)

    def _delete(self) -> None:
        for row in self.rows:
            self._transaction.database.outbox.pop(row.id, None)
