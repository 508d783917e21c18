"""Planted bugs: each must turn the checker red. Subclasses and functions in the place of the right ones."""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from consumer import ticker, worker
from consumer.errors import UnavailableError
from consumer.lifecycle import rules
from consumer.lifecycle.draft import Draft
from consumer.lifecycle.model import APPLIED, RANK, Closing, Outcome, Policy, Session
from consumer.offsets import Progress
from consumer.outbox import Outbox, OutboxRelay, OutboxRow, Publish
from consumer.records import DeadLetter, Record
from consumer.service import cache
from consumer.service.batch import Batch
from consumer.service.ports import NO_CONVERSATIONS, Conversations, Decided, EventsById, Locking, Lost, Snapshot
from consumer.ticker import DueTimer
from consumer.worker import PartitionWorker
from tests.checker.planted import resumed
from tests.fakes import MemoryAttempt, MemoryOutboxBatch, MemoryStore
from tests.memory_database import Transaction
from tests.simulation import planted_kafka, processes, replica
from tests.simulation.replacing import replaced

Plant = Callable[[], AbstractContextManager[None]]


class OffsetFirst(MemoryStore):
    """Moves the offset in a transaction before that of the effects."""

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator[MemoryAttempt]:
        async with super().attempt({}, progress, locking, {}) as first:
            await first.save(Decided(first.snapshot.now, ()))
        async with super().attempt(events, None, locking, {}) as attempt:
            yield attempt


class ReadBeforeGuard(MemoryStore):
    """What it has read may be of a time that a rewind has undone."""

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator[MemoryAttempt]:
        async with self.transaction() as early:
            snapshot = await self.load(events, early, cached)
        async with super().attempt(events, progress, locking, cached) as attempt:
            attempt.snapshot = snapshot
            yield attempt


class IdsBeforeRows(MemoryStore):
    """Looks known ids up before it reads the rows: an event may be written in between."""

    async def load(
        self, events: EventsById, transaction: Transaction, cached: Conversations = NO_CONVERSATIONS
    ) -> Snapshot:
        known = {key: self._known(key, events) for key in events}
        return replace(await super().load(events, transaction, cached), known=known)


class NoInbox(MemoryStore):
    """Knows no event that was applied before."""

    def _known(self, key: str, events: EventsById) -> frozenset[tuple[str, str]]:
        return frozenset()


class TimerDueOnce(MemoryStore):
    """Pushes timers back for so long that a tick that is lost never comes again."""

    def _push_back(self, transaction: Transaction, key: str, now: datetime) -> DueTimer:
        timer = super()._push_back(transaction, key, now)
        if timer.deadline < now:
            transaction.stage(lambda: self.database.wake_at.update({key: now + timedelta(days=9)}))
        return timer


class RetryWithoutRedeciding(MemoryStore):
    """Writes what lost its race again, without deciding again."""

    async def save(
        self, decided: Decided, transaction: Transaction, progress: Progress | None, locking: Locking
    ) -> Lost:
        lost = await super().save(decided, transaction, progress, locking)
        if not lost:
            return lost
        fresh = await self.load({c.after.id: c.events for c in decided.changes if c.after.id in lost}, transaction)
        return await super().save(resumed(decided, lost, fresh), transaction, progress, locking)


class OutboxCursor(MemoryStore):
    """Goes on after the greatest id that it has read: what commits late with a smaller one is passed over."""

    cursor = 0

    def _oldest(self, limit: int) -> list[OutboxRow]:
        rows = [row for row in super()._oldest(len(self.database.outbox)) if row.id > self.cursor][:limit]
        self.cursor = rows[-1].id if rows else self.cursor
        return rows


class SharedOutbox(MemoryStore):
    """Leaves out the rows that another relay has in hand: newer ones overtake them."""

    @asynccontextmanager
    async def turn(self, limit: int, seconds: float) -> AsyncIterator[MemoryOutboxBatch | None]:
        async with self.transaction() as transaction:
            rows = [
                row
                for row in self._oldest(len(self.database.outbox))
                if await transaction.lock(f"outbox row {row.id}", wait=False)
            ]
            yield MemoryOutboxBatch(transaction, rows[:limit])


class UnacknowledgedTransitions(OutboxRelay):
    """Deletes what it has published, whether it was acknowledged or not."""

    def __init__(self, outbox: Outbox, publish: Publish, **rest: Any) -> None:
        async def publish_regardless(records: Sequence[tuple[bytes, bytes]]) -> None:
            with suppress(UnavailableError):
                await publish(records)

        super().__init__(outbox, publish_regardless, **rest)


def delete_up_to_the_last(batch: MemoryOutboxBatch) -> None:
    """All rows up to the last id of the batch: some were committed after it was read."""
    outbox = batch._transaction.database.outbox
    last = max((row.id for row in batch.rows), default=0)
    for number in [number for number in outbox if number <= last]:
        del outbox[number]


class LateDeadLetters(PartitionWorker):
    """Sends the dead letters of a batch after its offset has moved."""

    letters: Sequence[DeadLetter] = ()

    async def _process(self, records: Sequence[Record]) -> None:
        await super()._process(records)
        letters, self.letters = self.letters, ()
        await super()._dead_letter(letters)

    async def _dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        self.letters = (*self.letters, *letters)


class BlindToRewinds(PartitionWorker):
    """An idle partition does not compare its offset with the stored one."""

    async def _check_for_rewind(self) -> None:
        return


class RefusedDeadLetteredLate(Batch):
    """Moves the offset before the dead letters of refused events are acknowledged."""

    def step(self, writing: int, next_mark: int) -> Progress | None:
        step = super().step(writing, next_mark)
        last = writing == self.outcomes.count(None)
        return replace(step, end=self.progress.end) if step and self.progress and last else step


class PartMovesOffset(Batch):
    """Moves the offset with each part of the batch."""

    def step(self, writing: int, next_mark: int) -> Progress | None:
        step = super().step(writing, next_mark)
        moves = step is not None and self.progress is not None and not self.awaits_dead_letters
        return replace(step, end=self.progress.end) if moves else step  # type: ignore[type-var, union-attr]


class NotStrictly(int):
    """A rank that is also higher than an equal one."""

    def __lt__(self, other: int) -> bool:
        return int(self) <= int(other)


class Forgetful(set[Any]):
    """Takes nothing up."""

    def add(self, _: Any) -> None:
        return


def close_without_split(draft: Draft, session: Session, event: Closing, policy: Policy) -> Outcome:
    """A newer message of the user stays in the session that is closed."""
    return draft.record(event, rules._closed_by(event, session), APPLIED)


def advance_although_lost(transaction: Transaction, progress: Progress, _: int) -> None:
    advance(transaction, progress, progress.end)


def stands_without_mark(transaction: Transaction, progress: Progress) -> bool:
    stored = transaction.database.offsets.get(progress.partition)
    return stored is not None and stored.next_offset == progress.start


advance = Transaction._advance
store = partial(replaced, processes, "MemoryStore")
BUGS: dict[str, Plant] = {
    "offsets stored before the effects": partial(store, OffsetFirst),
    "dead letter sent after the offset": partial(replaced, replica, "PartitionWorker", LateDeadLetters),
    "refused event dead-lettered after the offset": partial(replaced, worker, "Batch", RefusedDeadLetteredLate),
    "part of a batch moves the offset": partial(replaced, worker, "Batch", PartMovesOffset),
    "rewind of an idle partition not noticed": partial(replaced, replica, "PartitionWorker", BlindToRewinds),
    "priority compared with <=": partial(
        replaced, rules, "RANK", {status: NotStrictly(rank) for status, rank in RANK.items()}
    ),
    "retry without deciding again": partial(store, RetryWithoutRedeciding),
    "duplicate within a batch": partial(replaced, rules, "set", Forgetful),
    "newer message left behind by a split": partial(replaced, rules, "_close_open", close_without_split),
    "offset moved although some lost": partial(replaced, Transaction, "_advance", advance_although_lost),
    "offset guarded without its mark": partial(replaced, Transaction, "_stands", stands_without_mark),
    "no offset guard": partial(replaced, Transaction, "_stands", lambda *_: True),
    "no version in the WHERE": partial(replaced, Transaction, "_wins", lambda *_: True),
    "no inbox": partial(store, NoInbox),
    "read before the guard": partial(store, ReadBeforeGuard),
    "ids read before rows": partial(store, IdsBeforeRows),
    "cache that outlives a rewind": partial(replaced, cache.ConversationCache, "clear", lambda _: None),
    "timer that is due once": partial(store, TimerDueOnce),
    "timers before the last one never looked for": partial(replaced, ticker, "SWEEP_SECONDS", math.inf),
    "outbox read from a cursor": partial(store, OutboxCursor),
    "outbox shared row by row": partial(store, SharedOutbox),
    "transition deleted without acknowledgement": partial(
        replaced, processes, "OutboxRelay", UnacknowledgedTransitions
    ),
    "transitions deleted up to an id": partial(replaced, MemoryOutboxBatch, "_delete", delete_up_to_the_last),
    **planted_kafka.BUGS,
}
