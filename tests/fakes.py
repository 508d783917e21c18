"""Stands-in that pass the suites of the real parts."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from functools import partial

from consumer.errors import ConnectionLostError, ContentionError, RefusedError, StaleOwnerError, UnavailableError
from consumer.lifecycle.model import Change, Conversation, HistoryRow, Session, Tick
from consumer.lifecycle.rules import reaches_back
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.service.ports import NONE, Conversations, Decided, EventsById, LockHolder, Locking, Lost, Snapshot
from consumer.ticker import DueTimer

LOCK_TIMEOUT_SECONDS = 0.02
Row = str | Partition
"""What can be locked: a conversation, or the offset of a partition."""
Statement = Callable[[str], Awaitable[None]]
"""Called before each statement: time may pass there, others may come in between, and it may raise or never return."""


async def at_once(statement: str) -> None:
    """Nothing happens between two statements."""


class MemoryDatabase:
    """Committed rows and the locks on them, as READ COMMITTED shows them to each statement."""

    def __init__(
        self,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        refuses: Callable[[HistoryRow], bool] = lambda _: False,
    ) -> None:
        self.clock = clock
        self.refuses = refuses
        self.conversations: dict[str, Conversation] = {}
        self.rows: dict[str, list[tuple[HistoryRow, datetime]]] = {}
        self.offsets: dict[Partition, StoredOffset] = {}
        self.wake_at: dict[str, datetime] = {}
        self.trail: list[tuple[Partition, int, int]] = []
        self.moved: Callable[[Partition, int, int], None] = lambda *_: None
        self.holders: dict[Row, Transaction] = {}
        self.open: set[Transaction] = set()
        self.waiting = 0
        self._released: list[asyncio.Future[None]] = []

    def version(self, key: str) -> int:
        return self.conversations.get(key, Conversation(key)).version

    def write(self, change: Change, now: datetime) -> None:
        key, session = change.after.id, change.after.sessions[-1]
        before = self.conversations.get(key, change.before)
        sessions = {session.number: session for session in (*before.sessions, *change.after.sessions)}
        self.conversations[key] = change.after._replace(sessions=tuple(sessions[n] for n in sorted(sessions)))
        self.rows.setdefault(key, []).extend((row, now) for row in change.rows)
        timers = [at for at in (self.wake_at.pop(key, None), session.idle_at, session.expires_at) if at]
        if session.expires_at is not None:
            self.wake_at[key] = min(timers)

    async def released(self, seconds: float) -> None:
        """Waits until any lock is released; raises `ContentionError` after that long."""
        waiter = asyncio.get_running_loop().create_future()
        self._released.append(waiter)
        self.waiting += 1
        try:
            await asyncio.wait_for(waiter, seconds)
        except TimeoutError:
            raise ContentionError("lock") from None
        finally:
            self.waiting -= 1

    def release(self, transaction: "Transaction") -> None:
        self.holders = {row: holder for row, holder in self.holders.items() if holder is not transaction}
        waiting, self._released = self._released, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def copied(self) -> "MemoryDatabase":
        """A backup."""
        backup = copy(self)
        backup.conversations, backup.offsets = dict(self.conversations), dict(self.offsets)
        backup.wake_at = dict(self.wake_at)
        backup.rows = {key: list(rows) for key, rows in self.rows.items()}
        return backup

    def restore(self, backup: "MemoryDatabase") -> None:
        """Goes back to `backup`. Transactions that are open are lost."""
        for transaction in list(self.open):
            transaction.kill()
        restored = backup.copied()
        self.conversations, self.rows = restored.conversations, restored.rows
        self.offsets, self.wake_at = restored.offsets, restored.wake_at


class Transaction:
    """Row locks and staged writes; nothing of it is there before its commit."""

    def __init__(self, database: MemoryDatabase, statement: Statement) -> None:
        self.database = database
        self._statement = statement
        self._staged: list[Callable[[], None]] = []
        self._alive = True
        database.open.add(self)

    async def statement(self, name: str) -> None:
        await self._statement(name)
        if not self._alive:
            raise ConnectionLostError("the server has ended this transaction")

    async def lock(self, row: Row, *, wait: bool = True) -> bool:
        """Holds the row until the end; false if somebody else holds it and it is not to be waited for."""
        deadline = asyncio.get_running_loop().time() + LOCK_TIMEOUT_SECONDS
        while self.database.holders.get(row, self) is not self:
            if not wait:
                return False
            await self.database.released(deadline - asyncio.get_running_loop().time())
        if not self._alive:
            raise ConnectionLostError("the server has ended this transaction")
        self.database.holders[row] = self
        return True

    async def guard(self, progress: Progress) -> None:
        await self.statement("guard")
        if not self._stands(progress):
            raise StaleOwnerError(f"not as it was left at {progress.start}")
        try:
            await self.lock(progress.partition)
        except ContentionError as error:
            raise UnavailableError("another owner holds the partition's offset row") from error
        if not self._stands(progress):
            raise StaleOwnerError(f"no longer as it was left at {progress.start}")

    def _stands(self, progress: Progress) -> bool:
        stored = self.database.offsets.get(progress.partition)
        return stored is not None and (stored.next_offset, stored.mark) == (progress.start, progress.mark)

    async def save(self, decided: Decided, progress: Progress | None, *, wait: bool = True) -> Lost:
        lost: dict[str, str] = {}
        await self.statement("update")
        if any(self.database.refuses(row) for change in decided.changes for row in change.rows):
            raise RefusedError("a value")
        for change in sorted(decided.changes, key=lambda change: change.after.id):
            key = change.after.id
            if not change.rows:
                continue
            if wait and not self._wins(change):
                lost[key] = "version"
            elif not await self.lock(key, wait=wait):
                lost[key] = "lock"
            elif not self._wins(change):
                lost[key] = "version"
            else:
                self.stage(partial(self.database.write, change, decided.now))
        await self.statement("history")
        if progress is not None:
            self.stage(partial(self._advance, progress, progress.start if lost else progress.end))
        return lost

    def _wins(self, change: Change) -> bool:
        return self.database.version(change.after.id) == change.before.version

    def _advance(self, progress: Progress, next_offset: int) -> None:
        stored = self.database.offsets[progress.partition]
        self.database.offsets[progress.partition] = StoredOffset(stored.cluster_id, next_offset, progress.next_mark)
        self.database.trail.append((progress.partition, stored.next_offset, next_offset))
        self.database.moved(progress.partition, stored.next_offset, next_offset)

    def stage(self, write: Callable[[], None]) -> None:
        self._staged.append(write)

    def commit(self) -> None:
        for write in self._staged:
            write()
        self.kill()

    def kill(self) -> None:
        """Rolls back what is not committed. Killed twice is fine."""
        self._alive = False
        self._staged.clear()
        self.database.open.discard(self)
        self.database.release(self)


class MemoryStore:
    """`service.Store`, `worker.Offsets` and `ticker.Timers` of one client of a database in memory."""

    def __init__(self, database: MemoryDatabase | None = None, statement: Statement = at_once) -> None:
        self.database = database or MemoryDatabase()
        self.open: set[Transaction] = set()
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

    async def load(self, events: EventsById, transaction: Transaction, cached: Conversations = NONE) -> Snapshot:
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
            current[key] = current[key]._replace(sessions=(*archived, *current[key].sessions))
        return Snapshot(now, current, known)

    def _known(self, key: str, events: EventsById) -> frozenset[tuple[str, str]]:
        asked = {(event.source, event.event_id) for event in events[key] if not isinstance(event, Tick)}
        return frozenset(asked & {(row.source, row.event_id) for row, _ in self.rows.get(key, ())})

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NONE
    ) -> AsyncIterator["MemoryAttempt"]:
        async with self.transaction(progress) as transaction:
            if locking is Locking.PESSIMISTIC:
                await self.lock(transaction, *(key for key in events if key in self.conversations))
            snapshot = await self.load(events, transaction, cached)
            yield MemoryAttempt(self, transaction, snapshot, progress, locking)

    async def save(
        self, decided: Decided, transaction: Transaction, progress: Progress | None, locking: Locking
    ) -> Lost:
        return await transaction.save(decided, progress, wait=locking is not Locking.SKIPPING)

    async def lock(self, transaction: Transaction, *keys: str) -> None:
        """Row locks, taken in order."""
        await transaction.statement("lock")
        for key in sorted(keys):
            await transaction.lock(key)

    @asynccontextmanager
    async def transaction(self, progress: Progress | None = None) -> AsyncIterator[Transaction]:
        transaction = Transaction(self.database, self._statement)
        self.open.add(transaction)
        try:
            if progress is not None:
                await transaction.guard(progress)
            yield transaction
            await transaction.statement("commit")
            transaction.commit()
            await self._statement("committed")
        finally:
            transaction.kill()
            self.open.discard(transaction)

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        await self._statement("stored offset")
        return self.offsets.get(partition)

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        async with self.transaction() as transaction:
            transaction.stage(lambda: self.offsets.update({partition: self.offsets.get(partition, offset)}))

    async def lock_holder(self, conversation_id: str) -> LockHolder | None:
        await self._statement("lock holder")
        if (holder := self.database.holders.get(conversation_id)) is None:
            return None
        return LockHolder(id(holder), "memory", "somebody", self.database.clock(), "active")

    async def take_due_timers(self, limit: int) -> Sequence[DueTimer]:
        async with self.transaction() as transaction:
            await transaction.statement("due timers")
            now = self.database.clock()
            due = [key for at, key in sorted((at, key) for key, at in self.database.wake_at.items()) if at <= now]
            free = [key for key in due if await transaction.lock(key, wait=False)][:limit]
            return [self._push_back(transaction, key, now) for key in free]

    def _push_back(self, transaction: Transaction, key: str, now: datetime) -> DueTimer:
        deadline = self.conversations[key].sessions[-1].deadline
        assert deadline is not None
        pause = min(max(now - deadline, timedelta(seconds=60)), timedelta(minutes=15))
        transaction.stage(lambda: self.database.wake_at.update({key: deadline if deadline >= now else now + pause}))
        return DueTimer(key, deadline, now)

    async def overdue(self) -> int:
        await self._statement("overdue")
        limit = self.database.clock() - timedelta(seconds=60)
        deadlines = [found.sessions[-1].deadline for found in self.conversations.values()]
        return sum(deadline is not None and deadline < limit for deadline in deadlines)

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
