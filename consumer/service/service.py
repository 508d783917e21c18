"""The optimistically locked service: loads, decides, saves, and retries what lost its race.

Programs that share the table with the consumer (an API, a back office) write through `ConversationService.apply`.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception_type,
    stop_after_attempt,
    stop_never,
    wait_exponential,
)
from tenacity.stop import stop_base

from consumer.decoding import checked
from consumer.errors import ConcurrencyError, ContentionError, RefusedError, StoreError, UnavailableError
from consumer.lifecycle.model import Change, Conversation, Event, Outcome, Policy
from consumer.lifecycle.rules import fold
from consumer.observability.metrics import Metrics
from consumer.service.batch import Batch
from consumer.service.ports import Decided, EventsById, Locking, Lost, Sleep, Snapshot, Store


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Full jitter: each delay is drawn from 0 to a ceiling that doubles from `initial_seconds` to `max_seconds`."""

    attempts: int = 10
    initial_seconds: float = 0.005
    max_seconds: float = 0.5
    lock_after: int = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a caller waits for races to be won, and how it sleeps."""

    stop: stop_base
    sleep: Sleep


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
        self._ceiling = wait_exponential(multiplier=self._retry.initial_seconds, max=self._retry.max_seconds)

    async def apply(self, events: Sequence[Event]) -> list[Outcome]:
        """Applies `events` in order and returns their outcomes.

        Events of different conversations do not share a fate: those not named by an error, or by its cause, were
        written. Calling again with the same events is safe.

        Raises:
            InvalidEventError: an event breaks the contract; nothing was written.
            ConcurrencyError: other writers kept winning some conversations.
            RefusedError: the database will never take the events named; call again without them.
            UnavailableError: the database could not be reached; what was written is unknown.
        """
        batch = Batch([checked(event) for event in events])
        contended: ConcurrencyError | None = None
        try:
            await self._run(batch, Patience(stop_after_attempt(self._retry.attempts), self._sleep))
        except ContentionError as error:
            contended = ConcurrencyError(batch.pending(range(len(events))), self._retry.attempts)
            contended.__cause__ = error
        if batch.refused:
            refused = [(batch.events[i].source, batch.events[i].event_id) for i in batch.refused]
            raise RefusedError(f"the database will never take these events: {refused}") from contended
        if contended:
            raise contended
        return [outcome for outcome in batch.outcomes if outcome is not None]

    async def consume(self, batch: Batch, sleep: Sleep) -> None:
        """Applies a batch of the log and moves its offset, however long other writers keep winning.

        `sleep` may raise to end the backing off. Where `batch.refused` is not empty the offset has not moved: send the
        dead letters first, then say that it is `buried` and consume it again. An error leaves the batch resumable.
        """
        await self._run(batch, Patience(stop_never, sleep))

    async def _run(self, batch: Batch, patience: Patience) -> None:
        """Dead letters come before the offset: with any of them outstanding it is held."""
        hold = bool(batch.refused) and not batch.buried
        await self._apply_part(batch, range(len(batch.events)), patience, hold=hold)

    async def _apply_part(self, batch: Batch, part: Sequence[int], patience: Patience, *, hold: bool) -> None:
        """Bisects until the refused events stand alone, so that they cost their neighbours nothing."""
        try:
            await self._win(batch, part, patience, hold=hold)
        except RefusedError:
            if len(part) == 1:
                batch.refuse(part[0])
                return
            await self._apply_halves(batch, part, patience)

    async def _apply_halves(self, batch: Batch, part: Sequence[int], patience: Patience) -> None:
        """In order; a conversation that is still contended waits, the others do not."""
        contended: ContentionError | None = None
        waiting: set[str] = set()
        middle = len(part) // 2
        for half in (part[:middle], part[middle:]):
            ready = [position for position in half if batch.events[position].conversation_id not in waiting]
            try:
                if batch.pending(ready):
                    await self._apply_part(batch, ready, patience, hold=True)
            except ContentionError as error:
                contended = error
                waiting.update(batch.pending(half))
        if contended:
            raise contended

    async def _win(self, batch: Batch, part: Sequence[int], patience: Patience, *, hold: bool) -> None:
        """Attempts until every conversation of the part is written, backing off in between."""
        try:
            await self._attempt(batch, part, 1, hold=hold)
        except ContentionError as error:
            await self._win_back(error, batch, part, patience, hold=hold)

    async def _win_back(
        self, first: ContentionError, batch: Batch, part: Sequence[int], patience: Patience, *, hold: bool
    ) -> None:
        """Tries again; `first` is what the first attempt came to, made without the machinery that this takes."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ContentionError),
            wait=self._full_jitter,
            stop=patience.stop,
            sleep=patience.sleep,
            before_sleep=lambda state: self._count_retry(batch, state),
            reraise=True,
        ):
            with attempt:
                if (number := attempt.retry_state.attempt_number) == 1:
                    raise first
                await self._attempt(batch, part, number, hold=hold)

    async def _attempt(self, batch: Batch, part: Sequence[int], number: int, *, hold: bool) -> None:
        """One round on fresh state. Raises `ContentionError` if anything lost its race."""
        pending = batch.pending(part)
        events = {key: [batch.events[i] for i in positions] for key, positions in pending.items()}
        locking = Locking.OPTIMISTIC if number <= self._retry.lock_after else Locking.PESSIMISTIC
        async with self._writers:
            decided, lost = await self._transact(batch, events, locking, hold=hold)
        self._note_results(batch, pending, decided, lost)

    async def _transact(
        self, batch: Batch, events: EventsById, locking: Locking, *, hold: bool
    ) -> tuple[Decided, Lost]:
        """Reads, decides and writes. One that fails as a whole once it has decided is an attempt of each event.

        Where somebody holds a row, the others shall not wait for it.
        """
        progress = batch.step(self._rng.getrandbits(63), hold=hold)
        decided: Decided | None = None
        try:
            async with self._store.attempt(events, progress, locking, batch.memory.of(events)) as attempt:
                decided = decide(attempt.snapshot, events, self._policy)
                lost = await attempt.save(decided)
        except ContentionError as error:
            batch.memory.forget()
            if locking is not Locking.SKIPPING and error.reason == "lock":
                return await self._transact(batch, events, Locking.SKIPPING, hold=hold)
            losing = decided.changes if decided else [change for change, _ in batch.losing]
            self._lose(batch, [(change, error.reason) for change in losing])
            raise
        except (StoreError, UnavailableError):
            batch.memory.forget()
            self._metrics.attempted(decided.changes if decided else (), "error")
            raise
        self._metrics.lock_escalations.inc(len(events) if locking is Locking.PESSIMISTIC else 0)
        batch.leave(progress)
        batch.memory.keep(decided.changes, lost)
        return decided, lost

    def _note_results(self, batch: Batch, pending: Mapping[str, list[int]], decided: Decided, lost: Lost) -> None:
        now, seconds = decided.now.timestamp(), time.monotonic() - batch.started
        won: dict[int, list[Change]] = {}
        for change in decided.changes:
            key = change.before.id
            if key not in lost:
                won.setdefault(batch.losses.get(key, 0), []).append(change)
                for position, outcome in zip(pending[key], change.outcomes, strict=True):
                    batch.outcomes[position] = outcome
        for losses, changes in won.items():
            self._metrics.committed(changes, losses, batch.topic, now, seconds)
        if lost:
            self._lose(batch, [(c, lost[c.before.id]) for c in decided.changes if c.before.id in lost])
            raise ContentionError(next(iter(lost.values())))

    def _lose(self, batch: Batch, losing: Sequence[tuple[Change, str]]) -> None:
        self._metrics.attempted((change for change, _ in losing), "conflict")
        batch.losses.update(change.before.id for change, _ in losing)
        batch.losing = losing

    def _full_jitter(self, state: RetryCallState) -> float:
        return self._rng.uniform(0, self._ceiling(state))

    def _count_retry(self, batch: Batch, state: RetryCallState) -> None:
        seconds = state.next_action.sleep if state.next_action else 0.0
        for change, reason in batch.losing:
            self._metrics.retried(change, reason, seconds)


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
