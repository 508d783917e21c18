"""Retrying: only losers, on fresh state, with full jitter, within a budget, then under a lock."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from consumer.errors import (
    ConcurrencyError,
    ContentionError,
    DrainingError,
    InvalidEventError,
    RefusedError,
    StaleOwnerError,
    UnavailableError,
)
from consumer.lifecycle.model import Author, Change, Conversation, Event, Outcome, Policy
from consumer.lifecycle.rules import fold
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.service.batch import Batch
from consumer.service.cache import ConversationCache
from consumer.service.ports import NO_CONVERSATIONS, Conversations, Decided, EventsById, Locking, Lost, Snapshot
from consumer.service.service import ConversationService, RetryPolicy
from tests.builders import HOUR, MINUTE, close, message, tick
from tests.fakes import MemoryStore
from tests.memory_database import MemoryDatabase, Transaction
from tests.races import counted

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)


class Recorder:
    """A sleep that takes no time and remembers what it was asked for."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.delays.append(seconds)


class Rivalled(MemoryStore):
    """Before the first `times` saves without a lock, a rival writes the conversation `c-1`."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.loads: list[list[str]] = []

    async def load(
        self, events: EventsById, transaction: Transaction, cached: Conversations = NO_CONVERSATIONS
    ) -> Snapshot:
        self.loads.append(sorted(events))
        return await super().load(events, transaction, cached)

    async def save(self, decided: Decided, *rest: Any) -> Lost:
        if self.times and rest[-1] is not Locking.PESSIMISTIC:
            self.times -= 1
            await ConversationService(MemoryStore(self.database)).apply([message(at=NOW - HOUR)])
        return await super().save(decided, *rest)


def service(store: MemoryStore, sleep: Recorder, metrics: Metrics | None = None, **retry: Any) -> ConversationService:
    return ConversationService(
        store,
        retry=RetryPolicy(**retry),
        metrics=metrics,
        sleep=sleep,
        rng=Random(7),
    )


async def test_only_the_loser_is_read_and_decided_again() -> None:
    store, sleep = Rivalled(times=1), Recorder()

    outcomes = await service(store, sleep).apply([message(at=NOW), message(at=NOW, conversation_id="c-2")])

    assert outcomes == [Outcome.APPLIED, Outcome.APPLIED]
    assert store.loads == [["c-1", "c-2"], ["c-1"]]
    assert [row.version for row, _ in store.rows["c-1"]] == [1, 2]


async def test_outcomes_are_in_the_order_of_the_events() -> None:
    events: list[Event] = [
        tick(NOW),
        message(at=NOW),
        message(at=NOW, conversation_id="c-2"),
        message(Author.SYSTEM, NOW),
    ]

    events += [events[1], tick(NOW, conversation_id="c-3")]

    outcomes = await service(MemoryStore(), Recorder()).apply(events)

    assert outcomes == [
        Outcome.UNKNOWN,
        Outcome.APPLIED,
        Outcome.APPLIED,
        Outcome.APPLIED,
        Outcome.DUPLICATE,
        Outcome.UNKNOWN,
    ]


async def test_delays_are_drawn_between_zero_and_a_ceiling_that_doubles() -> None:
    sleep = Recorder()
    store = Rivalled(times=8)

    await service(store, sleep, attempts=20, initial_seconds=0.1, max_seconds=1.0, lock_after=9).apply(
        [message(at=NOW)]
    )

    ceilings = [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0]
    assert len(sleep.delays) == len(ceilings)
    assert all(0 <= delay <= ceiling for delay, ceiling in zip(sleep.delays, ceilings, strict=True))
    assert len(set(sleep.delays)) == len(ceilings)


async def test_the_budget_of_a_library_call_is_bounded() -> None:
    sleep, metrics = Recorder(), Metrics()
    store = Rivalled(times=99)

    with pytest.raises(ConcurrencyError) as caught:
        await service(store, sleep, metrics, attempts=4, lock_after=9).apply(
            [message(at=NOW), close(at=NOW, conversation_id="c-2")]
        )

    assert caught.value.conversation_ids == {"c-1"}
    assert len(sleep.delays) == 3
    assert "c-2" in store.conversations
    assert counted(metrics, "conversation_concurrency_errors_total", operation="inbound-message") == 1
    assert counted(metrics, "conversation_concurrency_errors_total") == 1


async def test_after_some_losses_the_row_is_locked_before_it_is_read() -> None:
    metrics = Metrics()

    await service(Rivalled(times=99), Recorder(), metrics, lock_after=2).apply([message(at=NOW)])

    assert counted(metrics, "conversation_lock_escalations_total") == 1
    assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 2
    assert counted(metrics, "conversation_write_attempts_total", result="committed") == 1


async def test_attempts_and_backoff_are_counted_per_event_with_an_effect() -> None:
    metrics, sleep = Metrics(), Recorder()
    events: list[Event] = [message(at=NOW), close(at=NOW + MINUTE), tick(NOW)]

    await service(Rivalled(times=2), sleep, metrics, lock_after=9).apply(events)

    for kind in ("inbound-message", "manual-close"):
        assert counted(metrics, "conversation_write_attempts_total", operation=kind, result="conflict") == 2
        assert counted(metrics, "conversation_write_attempts_total", operation=kind, result="committed") == 1
        assert counted(metrics, "conversation_retries_total", operation=kind) == 2
        assert counted(metrics, "conversation_operation_retries_sum", operation=kind) == 2
        backoff = counted(metrics, "conversation_retry_backoff_seconds_total", operation=kind)
        assert backoff == pytest.approx(sum(sleep.delays))
    assert counted(metrics, "conversation_write_attempts_total", operation="tick") == 0


async def test_a_consumer_goes_on_past_any_budget() -> None:
    sleep = Recorder()
    batch = Batch([message(at=NOW)])

    await service(Rivalled(times=30), sleep, attempts=2, lock_after=99).consume(batch, sleep)

    assert batch.outcomes == [Outcome.APPLIED]
    assert len(sleep.delays) == 30


async def test_draining_ends_the_backoff_and_leaves_the_batch_resumable() -> None:
    store, recorder = Rivalled(times=1), Recorder()
    batch = Batch([message(at=NOW), message(at=NOW, conversation_id="c-2")])

    async def draining(_: float) -> None:
        raise DrainingError("revoked")

    with pytest.raises(DrainingError):
        await service(store, recorder).consume(batch, draining)
    assert batch.outcomes == [None, Outcome.APPLIED]

    await service(store, recorder).consume(batch, recorder)
    assert batch.outcomes == [Outcome.APPLIED, Outcome.APPLIED]


async def test_a_rewind_between_two_parts_of_a_batch_is_noticed() -> None:
    """The offset is the same before and after it, the effects of the first part are not."""
    store = Rivalled(times=1)
    store.offsets[PLACE] = StoredOffset("cluster", 0)
    backup = store.database.copied()
    batch = Batch([message(at=NOW), message(at=NOW, conversation_id="c-2")], Progress(PLACE, 0, 2))

    async def rewind(_: float) -> None:
        store.database.restore(backup)

    with pytest.raises(StaleOwnerError):
        await ConversationService(store).consume(batch, rewind)

    assert store.offsets[PLACE].next_offset == 0
    assert store.conversations == {}


async def test_a_rewind_after_a_commit_without_a_reply_is_noticed() -> None:
    """Trying again, the events are known; then the database forgets them, and nothing is left to write."""
    replies = 0

    async def statement(name: str) -> None:
        nonlocal replies
        if name == "committed":
            replies += 1
            if replies == 1:
                raise UnavailableError("no reply")
            store.database.restore(backup)

    store = MemoryStore(statement=statement)
    store.offsets[PLACE] = StoredOffset("cluster", 0)
    backup = store.database.copied()
    batch = Batch([message(at=NOW)], Progress(PLACE, 0, 1))

    with pytest.raises(UnavailableError):
        await ConversationService(store).consume(batch, Recorder())
    with pytest.raises(StaleOwnerError):
        await ConversationService(store).consume(batch, Recorder())


class Failing(MemoryStore):
    """The first saves fail as a whole."""

    def __init__(self, *errors: Callable[[], Exception]) -> None:
        super().__init__()
        self.errors = list(errors)

    async def save(self, decided: Decided, *rest: Any) -> Lost:
        if self.errors:
            raise self.errors.pop(0)()
        return await super().save(decided, *rest)


async def test_a_deadlock_is_a_lost_race_of_all_events() -> None:
    metrics = Metrics()

    await service(Failing(lambda: ContentionError("deadlock")), Recorder(), metrics).apply([message(at=NOW)])

    assert counted(metrics, "conversation_retries_total", reason="deadlock") == 1
    assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


async def test_an_outage_is_not_retried_here() -> None:
    metrics, sleep = Metrics(), Recorder()

    with pytest.raises(UnavailableError):
        await service(Failing(lambda: UnavailableError("down")), sleep, metrics).apply([message(at=NOW)])

    assert sleep.delays == []
    assert counted(metrics, "conversation_write_attempts_total", result="error") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - the mistake under test
        {"at": datetime(2001, 1, 1, tzinfo=UTC)},
        {"source": "consumer"},
        {"event_id": ""},
        {"conversation_id": "x" * 201},
        {"author": "robot"},
    ],
    ids=str,
)
async def test_a_library_caller_is_held_to_the_contract(changes: dict[str, Any]) -> None:
    store = MemoryStore()

    with pytest.raises(InvalidEventError):
        await service(store, Recorder()).apply([message(at=NOW), message(**{"at": NOW, **changes})])

    assert store.conversations == {}


def refusing() -> MemoryDatabase:
    """Takes no event `refused`."""
    return MemoryDatabase(refuses=lambda row: row.event_id == "refused")


def at_start(database: MemoryDatabase | None = None) -> MemoryStore:
    store = MemoryStore(database)
    store.offsets[PLACE] = StoredOffset("cluster", 0)
    return store


@pytest.mark.parametrize("topic", ["direct", "events"])
async def test_outcomes_are_counted_under_the_batchs_topic(topic: str) -> None:
    metrics = Metrics(["events"])
    subject = service(MemoryStore(), Recorder(), metrics)

    if topic == "direct":
        await subject.apply([message(at=NOW)])
    else:
        await subject.consume(Batch([message(at=NOW)], topic=topic), Recorder())

    assert counted(metrics, "conversation_events_total", topic=topic, outcome="applied") == 1
    assert counted(metrics, "conversation_events_total") == 1


async def test_an_event_that_was_applied_before_is_a_duplicate() -> None:
    subject, event = service(MemoryStore(), Recorder()), message(at=NOW)

    assert await subject.apply([event]) == [Outcome.APPLIED]
    assert await subject.apply([event]) == [Outcome.DUPLICATE]


async def test_at_most_eight_writes_run_at_once() -> None:
    class Crowded(MemoryStore):
        running = most = 0

        async def save(self, *args: Any) -> Lost:
            self.running += 1
            self.most = max(self.most, self.running)
            await asyncio.sleep(0)
            self.running -= 1
            return await super().save(*args)

    store = Crowded()
    subject = ConversationService(store)

    await asyncio.gather(*(subject.apply([message(at=NOW, conversation_id=f"c-{n}")]) for n in range(20)))

    assert store.most == 8


async def test_the_error_of_a_used_up_budget_tells_attempts_and_reason() -> None:
    with pytest.raises(ConcurrencyError, match="after 4 attempts") as caught:
        await service(Rivalled(times=99), Recorder(), attempts=4, lock_after=9).apply([message(at=NOW)])

    assert isinstance(caught.value.__cause__, ContentionError)
    assert caught.value.__cause__.reason == "version"


async def test_a_library_caller_learns_which_events_are_refused() -> None:
    store = MemoryStore(refusing())

    with pytest.raises(RefusedError, match="'whatsapp:1', 'refused'") as caught:
        await service(store, Recorder()).apply(
            [message(at=NOW), message(at=NOW, conversation_id="c-2", event_id="refused")]
        )

    assert caught.value.__cause__ is None
    assert list(store.conversations) == ["c-1"]


async def test_a_conversation_contended_while_refused_events_are_isolated_is_reported() -> None:
    store = Rivalled(times=99)
    store.database.refuses = refusing().refuses
    events = [message(at=NOW - MINUTE), message(at=NOW, conversation_id="c-2"), message(at=NOW, event_id="refused")]

    with pytest.raises(ConcurrencyError) as caught:
        await service(store, Recorder(), attempts=2, lock_after=9).apply(events)

    assert caught.value.conversation_ids == {"c-1"}
    assert "c-2" in store.conversations


class DeadLetters:
    """Notes which events are dead-lettered and where the offset is then; the first times the topic is away."""

    def __init__(self, store: MemoryStore, failures: int = 0) -> None:
        self.store = store
        self.failures = failures
        self.sent: list[tuple[int, int]] = []

    async def __call__(self, refused: Sequence[int]) -> None:
        self.sent += [(position, self.store.offsets[PLACE].next_offset) for position in refused]
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no dead-letter topic")


def batch_with_a_refused_event(dead_letters: DeadLetters) -> Batch:
    events = [message(at=NOW), message(at=NOW, conversation_id="c-2", event_id="refused")]
    return Batch(events, Progress(PLACE, 0, 2), dead_letter=dead_letters)


async def test_refused_events_hold_the_offset_until_they_are_dead_lettered() -> None:
    store = at_start(refusing())
    dead_letters = DeadLetters(store)
    batch = batch_with_a_refused_event(dead_letters)

    await service(store, Recorder()).consume(batch, Recorder())

    assert dead_letters.sent == [(1, 0)]
    assert (batch.outcomes, store.offsets[PLACE].next_offset) == ([Outcome.APPLIED, Outcome.DEAD_LETTER], 2)


async def test_a_batch_whose_dead_letters_cannot_be_sent_is_resumed_with_them() -> None:
    store = at_start(refusing())
    dead_letters = DeadLetters(store, failures=1)
    batch = batch_with_a_refused_event(dead_letters)

    with pytest.raises(UnavailableError):
        await service(store, Recorder()).consume(batch, Recorder())
    assert store.offsets[PLACE].next_offset == 0

    await service(store, Recorder()).consume(batch, Recorder())
    assert dead_letters.sent == [(1, 0), (1, 0)]
    assert store.offsets[PLACE].next_offset == 2


class Locked(MemoryStore):
    """Somebody holds the row for the first optimistic write of `c-1` alone, and lets go right after."""

    failures = 1

    async def save(self, decided: Decided, *rest: Any) -> Lost:
        if self.failures and [change.after.id for change in decided.changes] == ["c-1"]:
            self.failures -= 1
            raise ContentionError("lock")
        return await super().save(decided, *rest)


async def test_refused_events_hold_the_offset_even_if_a_lock_got_in_between() -> None:
    store = Locked(refusing())
    store.offsets[PLACE] = StoredOffset("cluster", 0)
    dead_letters = DeadLetters(store)
    batch = batch_with_a_refused_event(dead_letters)

    await service(store, Recorder()).consume(batch, Recorder())

    assert store.failures == 0
    assert dead_letters.sent == [(1, 0)]
    assert batch.outcomes == [Outcome.APPLIED, Outcome.DEAD_LETTER]


@pytest.mark.parametrize("lock_after", [3, 0], ids=["optimistic", "pessimistic"])
async def test_a_row_that_somebody_holds_costs_its_neighbours_nothing(lock_after: int) -> None:
    store, metrics = MemoryStore(), Metrics()
    await service(store, Recorder()).apply([message(at=NOW - HOUR)])
    events: Sequence[Event] = [message(at=NOW), message(at=NOW, conversation_id="c-2")]

    async with MemoryStore(store.database).transaction() as holder:
        await holder.lock("c-1")
        with pytest.raises(ConcurrencyError) as caught:
            await service(store, Recorder(), metrics, attempts=1, lock_after=lock_after).apply(events)

    assert caught.value.conversation_ids == {"c-1"}
    assert "c-2" in store.conversations
    assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


async def test_a_lock_that_is_not_to_be_had_is_tried_again() -> None:
    store, metrics = MemoryStore(), Metrics()
    await service(store, Recorder()).apply([message(at=NOW - HOUR)])
    holder = MemoryStore(store.database).transaction()
    await (await holder.__aenter__()).lock("c-1")

    async def until_it_is_free(_: float) -> None:
        await holder.__aexit__(None, None, None)

    retry = RetryPolicy(lock_after=0)
    subject = ConversationService(store, retry=retry, metrics=metrics, sleep=until_it_is_free)

    assert await subject.apply([message(at=NOW)]) == [Outcome.APPLIED]


async def test_every_transaction_leaves_a_mark_of_its_own() -> None:
    store, marks = at_start(), []
    subject = service(store, Recorder())

    for offset in range(3):
        batch = Batch([message(at=NOW)], Progress(PLACE, offset, offset + 1, store.offsets[PLACE].mark))
        await subject.consume(batch, Recorder())
        marks.append(store.offsets[PLACE].mark)

    assert len({0, *marks}) == 4


async def test_a_mark_fits_into_a_bigint() -> None:
    class Ones(Random):
        def getrandbits(self, k: int, /) -> int:
            return (1 << k) - 1

    store = at_start()

    await ConversationService(store, rng=Ones()).consume(Batch([message(at=NOW)], Progress(PLACE, 0, 1)), Recorder())

    assert store.offsets[PLACE].mark == 2**63 - 1


class TestConversationCache:
    """Of one partition: what its last transactions left, and no more than it may hold."""

    def made(self, *keys: str) -> list[Change]:
        return [fold(Conversation(key), [message(at=NOW, conversation_id=key)], (), Policy(), NOW) for key in keys]

    def test_what_was_written_is_cached(self) -> None:
        cache = ConversationCache(10)
        (change,) = self.made("c-1")

        cache.update([change], {})

        assert cache.lookup(["c-1", "c-2"]) == {"c-1": change.after}

    def test_what_was_lost_is_not(self) -> None:
        cache = ConversationCache(10)
        cache.update(self.made("c-1"), {})

        cache.update(self.made("c-1"), {"c-1": "version"})

        assert cache.lookup(["c-1"]) == {}

    def test_what_was_never_seen_is_not(self) -> None:
        cache = ConversationCache(10)

        cache.update([fold(Conversation("c-1"), [tick(NOW)], (), Policy(), NOW)], {})

        assert cache.lookup(["c-1"]) == {}

    def test_those_written_longest_ago_go_first(self) -> None:
        cache = ConversationCache(2)
        cache.update(self.made("c-1", "c-2"), {})

        cache.update(self.made("c-1", "c-3"), {})

        assert set(cache.lookup(["c-1", "c-2", "c-3"])) == {"c-1", "c-3"}

    def test_only_the_current_session_is_kept(self) -> None:
        cache = ConversationCache(10)
        events: list[Event] = [message(at=NOW - HOUR), close(at=NOW - MINUTE), message(at=NOW)]
        change = fold(Conversation("c-1"), events, (), Policy(), NOW)

        cache.update([change], {})

        assert [session.number for session in cache.lookup(["c-1"])["c-1"].sessions] == [2]

    @pytest.mark.parametrize("error", [ContentionError("deadlock"), UnavailableError("away"), RefusedError("a value")])
    async def test_any_failure_clears_it(self, error: Exception) -> None:
        store = FailingOnce(error)
        cache = ConversationCache(10)
        cache.update(self.made("c-9"), {})
        batch = Batch([message(at=NOW)], cache=cache)

        with suppress(UnavailableError):
            await service(store, Recorder()).consume(batch, Recorder())

        assert cache.lookup(["c-9"]) == {}


class FailingOnce(MemoryStore):
    """The first save fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    async def save(self, decided: Decided, *rest: Any) -> Lost:
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return await super().save(decided, *rest)


class WithLockedTables(MemoryStore):
    """Somebody changes a table: nothing can be read before the time limit of a lock."""

    async def load(
        self, events: EventsById, transaction: Transaction, cached: Conversations = NO_CONVERSATIONS
    ) -> Snapshot:
        raise ContentionError("lock")


async def test_a_lock_on_the_tables_is_an_outage_and_no_lost_race() -> None:
    store, sleep, metrics = WithLockedTables(), Recorder(), Metrics()

    with pytest.raises(UnavailableError, match="another transaction holds"):
        await service(store, sleep, metrics).apply([message(at=NOW)])

    assert sleep.delays == []
    assert counted(metrics, "conversation_retries_total") == 0
