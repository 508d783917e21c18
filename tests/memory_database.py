"""A database in memory: rows and locks as READ COMMITTED shows them to each statement."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from datetime import UTC, datetime
from functools import partial
from itertools import count

from consumer.errors import (
    ConnectionLostError,
    ContentionError,
    RefusedError,
    StaleOwnerError,
    UnavailableError,
)
from consumer.lifecycle.model import Change, Conversation, HistoryRow
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.outbox import OutboxRow
from consumer.service.ports import Decided, Lost

LOCK_TIMEOUT_SECONDS = 0.02
OUTBOX = "the outbox's turn"
Row = str | Partition
"""What can be locked: a conversation, the offset of a partition, the turn of the outbox."""
Statement = Callable[[str], Awaitable[None]]
"""Called before each statement: time may pass there, others may come in between, and it may raise or never return."""


async def at_once(statement: str) -> None:
    """Nothing happens between two statements."""


class UnansweredCommitError(Exception):
    """Raised by a `Statement` at a COMMIT that the client gives up: the server ends it after so many seconds."""

    def __init__(self, seconds: float, *, takes_effect: bool) -> None:
        self.seconds = seconds
        self.takes_effect = takes_effect
        super().__init__()


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
        self.outbox: dict[int, OutboxRow] = {}
        self.outbox_ids = count(1)
        self._tokens = count(1)
        self.trail: list[tuple[Partition, int, int]] = []
        self.moved: Callable[[Partition, int, int], None] = lambda *_: None
        self.was_set: Callable[[Partition, StoredOffset | None, StoredOffset], None] = lambda *_: None
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

    def set_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """An operator's decision."""
        token = -next(self._tokens)
        before, after = self.offsets.get(partition), StoredOffset(offset.cluster_id, offset.next_offset, token)
        self.offsets[partition] = after
        self.was_set(partition, before, after)

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
        backup.wake_at, backup.outbox = dict(self.wake_at), dict(self.outbox)
        backup.rows = {key: list(rows) for key, rows in self.rows.items()}
        return backup

    def restore(self, backup: "MemoryDatabase") -> None:
        """Goes back to `backup`. Transactions that are open are lost."""
        for transaction in list(self.open):
            transaction.kill()
        restored = backup.copied()
        self.conversations, self.rows = restored.conversations, restored.rows
        self.offsets, self.wake_at, self.outbox = restored.offsets, restored.wake_at, restored.outbox


class Transaction:
    """Row locks and staged writes; nothing of it is there before its commit."""

    def __init__(self, database: MemoryDatabase, statement: Statement) -> None:
        self.database = database
        self._statement = statement
        self._staged: list[Callable[[], None]] = []
        self._alive = True
        self.is_left = False
        self.commits_at_once = False
        """With what it writes first: until then it is no more than a session. See `consumer.postgres.few`."""
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
        try:
            await self.statement("guard")
            await self._hold(progress)
        except ContentionError as error:
            raise UnavailableError("another owner holds the partition's offset row") from error

    async def _hold(self, progress: Progress) -> None:
        if not self._stands(progress):
            raise StaleOwnerError(f"not as it was left at {progress.start}")
        await self.lock(progress.partition)
        if not self._stands(progress):
            raise StaleOwnerError(f"no longer as it was left at {progress.start}")

    def _stands(self, progress: Progress) -> bool:
        stored = self.database.offsets.get(progress.partition)
        return stored is not None and (stored.next_offset, stored.mark) == (progress.start, progress.mark)

    async def save(self, decided: Decided, progress: Progress | None, *, wait: bool = True) -> Lost:
        await self.statement("update")
        lost = await self._stage_rows(decided, wait=wait)
        await self.statement("history")
        self._stage_the_rest(decided, progress, lost)
        return lost

    async def write(self, decided: Decided, progress: Progress | None) -> Lost:
        """Guard, rows and all that belongs to them in one statement, as long as its locks take."""
        await self.statement("write")
        if progress is not None:
            try:
                await self._hold(progress)
            except ContentionError as error:
                if any(change.rows for change in decided.changes):
                    raise
                raise UnavailableError("another owner holds the partition's offset row") from error
        lost = await self._stage_rows(decided, wait=True)
        self._stage_the_rest(decided, progress, lost)
        return lost

    async def _stage_rows(self, decided: Decided, *, wait: bool) -> Lost:
        lost: dict[str, str] = {}
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
        return lost

    def _stage_the_rest(self, decided: Decided, progress: Progress | None, lost: Lost) -> None:
        self._stage_outbox([change for change in decided.changes if change.after.id not in lost], decided.now)
        if progress is not None:
            self.stage(partial(self._advance, progress, progress.start if lost else progress.end))

    def _stage_outbox(self, written: Sequence[Change], now: datetime) -> None:
        """Ids are taken now, rows are seen after the commit: others with greater ids may be seen before."""
        for row in (row for change in written for row in change.rows if row.is_transition):
            transition = OutboxRow(next(self.database.outbox_ids), *_transition(row), row.occurred_at, now)
            self.stage(partial(self.database.outbox.__setitem__, transition.id, transition))

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

    def leave_to_the_server(self, commit: UnansweredCommitError) -> None:
        """Keeps the locks until the server ends the transaction, whatever its client does."""
        self.is_left = True
        asyncio.get_running_loop().call_later(commit.seconds, self.commit if commit.takes_effect else self.kill)

    def kill(self) -> None:
        """Rolls back what is not committed. Killed twice is fine."""
        self._alive = False
        self._staged.clear()
        self.database.open.discard(self)
        self.database.release(self)


def _transition(row: HistoryRow) -> tuple[str, int, int, str | None, str, str, str | None]:
    return (
        *(row.conversation_id, row.session, row.version),
        *(row.from_status, row.to_status, row.actor, row.reason),
    )
