"""The optimistically locked service: loads, decides, saves, and retries what lost its race.

Programs that share the table with the consumer (an API, a back office) write through `ConversationService.apply`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from consumer.decoding import checked
from consumer.errors import (
    ConcurrencyError,
    ContentionError,
    RefusedError,
    StaleOwnerError,
    StoreError,
    UnavailableError,
)
from consumer.lifecycle.model import Change, Conversation, Event, Outcome, Policy
from consumer.lifecycle.rules import fold
from consumer.observability.metrics import Metrics
from consumer.retry import Backoff, Sleep, retried
from consumer.service.batch import Batch
from consumer.service.ports import Decided, EventsById, Locking, Lost, Snapshot, Store


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full jitter: each delay is drawn from 0 to a ceiling that doubles from `initial_seconds` to `max_seconds`."""

    attempts: int = 10
    initial_seconds: float = 0.005
    max_seconds: float = 0.5
    lock_after: int = 3


class ConversationService:
    """Applies events to conversations that other writers touch at the same time; no update is ever lost."""

    def __init__(
        self,
        store: Store,
        *,
        policy: Policy | None = None,
        retry: RetryPolicy | None = None,
        metrics: Metrics | None = None,
        writers: int = 8,
        sleep: Sleep = asyncio.sleep,
        rng: Random | None = None,
    ) -> None:
        """`writers` bounds concurrent attempts; give the store a connection pool one larger."""
        self._store = store
        self._policy = policy or Policy()
        self._retry = retry or RetryPolicy()
        self._metrics = metrics or Metrics()
        self._writers = asyncio.Semaphore(writers)
        self._sleep = sleep
        self._rng = rng or Random()
        self._backoff = Backoff(self._retry.initial_seconds, self._retry.max_seconds, self._rng)

    async def apply(self, events: Sequence[Event]) -> list[Outcome]:
        """Applies `events` in order and returns their outcomes.

        Events of different conversations do not share a fate: those not named by an error, or by its cause, were
        written. Calling again with the same events is safe.

        Raises:
            InvalidEventError: an event breaks the contract; nothing was written.
            ConcurrencyError: other writers kept winning some conversations.
            RefusedError: the database will never take the events named; call again without them.
            UnavailableError: the database could not be reached; what was written is unknown.
            ConfigurationError: the database refuses this user, or has no schema for this build.
        """
        batch = Batch([checked(event) for event in events])
        contended: ConcurrencyError | None = None
        try:
            await self._write_all(batch, Limits(self._retry.attempts, self._sleep))
        except ContentionError as error:
            contended = ConcurrencyError(batch.pending(batch.everything), self._retry.attempts)
            contended.__cause__ = error
            self._metrics.gave_up(change for change, _ in batch.losing)
        if batch.refused:
            refused = [(batch.events[i].source, batch.events[i].event_id) for i in batch.refused]
            raise RefusedError(f"the database will never take these events: {refused}") from contended
        if contended:
            raise contended
        return [outcome for outcome in batch.outcomes if outcome is not None]

    async def consume(self, batch: Batch, sleep: Sleep) -> None:
        """Applies a batch of the log and moves its offset, however long other writers keep winning.

        `sleep` may raise to end the backoff. An error leaves the batch resumable: call again with the same one.
        """
        await self._write_all(batch, Limits(None, sleep))

    async def _write_all(self, batch: Batch, limits: "Limits") -> None:
        """Writes every event, or refuses it; the dead letters of refused events come before the offset."""
        try:
            await self._write(batch, batch.everything, limits)
        except RefusedError:
            await self._isolate_refused(batch, batch.everything, limits)
        if batch.awaits_dead_letters:
            await batch.dead_letter_refused()
            if batch.progress is not None and not batch.awaits_dead_letters:
                await self._write(batch, batch.everything, limits)

    async def _isolate_refused(self, batch: Batch, part: Sequence[int], limits: "Limits") -> None:
        """Bisects in order until the refused events stand alone, so that they cost their neighbours nothing.

        A conversation that is still contended waits, the others do not.
        """
        if len(part) == 1:
            batch.refuse(part[0])
            return
        contended: ContentionError | None = None
        waiting: set[str] = set()
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            ready = [position for position in half if batch.events[position].conversation_id not in waiting]
            try:
                if batch.pending(ready):
                    await self._write(batch, ready, limits)
            except RefusedError:
                await self._isolate_refused(batch, ready, limits)
            except ContentionError as error:
                contended = error
                waiting.update(batch.pending(half))
        if contended:
            raise contended

    async def _write(self, batch: Batch, part: Sequence[int], limits: "Limits") -> None:
        """Attempts until every conversation of the part is written, backing off in between."""
        await retried(
            lambda number: self._attempt(batch, part, number),
            ContentionError,
            self._backoff,
            limits.sleep,
            attempts=limits.attempts,
            before_sleep=lambda _, seconds: self._count_retries(batch, seconds),
        )

    async def _attempt(self, batch: Batch, part: Sequence[int], number: int) -> None:
        """One round on fresh state. Raises `ContentionError` if anything lost its race."""
        pending = batch.pending(part)
        locking = Locking.OPTIMISTIC if number <= self._retry.lock_after else Locking.PESSIMISTIC
        async with self._writers:
            written = await self._transact(batch, pending, locking)
        self._note_outcomes(batch, pending, written)
        if written.lost:
            batch.lose([(c, written.lost[c.before.id]) for c in written.decided.changes if c.before.id in written.lost])
            self._metrics.attempted((change for change, _ in batch.losing), "conflict")
            raise ContentionError(next(iter(written.lost.values())))

    async def _transact(self, batch: Batch, pending: Mapping[str, list[int]], locking: Locking) -> "Written":
        """Reads, decides and writes. One that fails as a whole once it has decided is an attempt of each event.

        Where somebody holds a row, the other rows do not wait for it.
        """
        events = {key: [batch.events[i] for i in positions] for key, positions in pending.items()}
        step = batch.step(sum(map(len, events.values())), self._rng.getrandbits(63))
        decided: Decided | None = None
        try:
            async with self._store.attempt(events, step, locking, batch.cache.lookup(events)) as attempt:
                read_at = time.monotonic()
                decided = decide(attempt.snapshot, events, self._policy)
                lost = await attempt.save(decided)
        except ContentionError as error:
            batch.cache.clear()
            if locking is not Locking.SKIPPING and error.reason == "lock":
                return await self._transact(batch, pending, Locking.SKIPPING)
            if error.reason == "lock":  # rows that somebody holds are left out by now
                self._metrics.attempted(decided.changes if decided else (), "error")
                raise UnavailableError("another transaction holds the tables of conversations") from error
            changes = decided.changes if decided else [change for change, _ in batch.losing]
            batch.lose([(change, error.reason) for change in changes])
            self._metrics.attempted(changes, "conflict")
            raise
        except (StoreError, UnavailableError) as error:
            batch.cache.clear()
            failed = decided is not None and not isinstance(error, StaleOwnerError)
            self._metrics.attempted(decided.changes if decided and failed else (), "error")
            raise
        self._metrics.lock_escalations.inc(len(events) if locking is Locking.PESSIMISTIC else 0)
        batch.committed(step)
        batch.cache.update(decided.changes, lost)
        return Written(decided, lost, decided.now.timestamp() + time.monotonic() - read_at)

    def _note_outcomes(self, batch: Batch, pending: Mapping[str, list[int]], written: "Written") -> None:
        by_conflicts: dict[int, list[Change]] = {}
        for change in written.decided.changes:
            key = change.before.id
            if key not in written.lost:
                by_conflicts.setdefault(batch.conflicts.get(key, 0), []).append(change)
                for position, outcome in zip(pending[key], change.outcomes, strict=True):
                    batch.outcomes[position] = outcome
        seconds = time.monotonic() - batch.started
        for conflicts, changes in by_conflicts.items():
            self._metrics.committed(changes, conflicts, batch.topic, written.committed_at, seconds)

    def _count_retries(self, batch: Batch, seconds: float) -> None:
        for change, reason in batch.losing:
            self._metrics.retried(change, reason, seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """How often a caller attempts a write at most (None: as often as it takes), and how it sleeps in between."""

    attempts: int | None
    sleep: Sleep


@dataclass(frozen=True, slots=True)
class Written:
    """What a transaction has committed, and when, as a Unix time by the database's clock."""

    decided: Decided
    lost: Lost
    committed_at: float


def decide(snapshot: Snapshot, events: EventsById, policy: Policy) -> Decided:
    """What `events` do to the conversations as the store knows them."""
    changes = [
        fold(
            snapshot.conversations.get(key) or Conversation(key),
            of_one,
            snapshot.known.get(key, ()),
            policy,
            snapshot.now,
        )
        for key, of_one in events.items()
    ]
    return Decided(snapshot.now, changes)
