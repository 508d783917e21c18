"""The reference ticker on real timers: nothing starves, nothing multiplies, nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from consumer import ticker as module
from consumer.kafka.placement import home_of
from consumer.lifecycle.model import Author, Outcome, Status
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import TickerSettings
from consumer.ticker import Ticker, TickTopic
from schemas import decode
from tests.builders import HOUR, MINUTE, message, tick
from tests.conftest import opened
from tests.fakes import MemoryTickTopic
from tests.races import counted
from tests.stack.database import earlier, execute

NOW = datetime.now(UTC)
QUICK = TickerSettings(interval_seconds=0.02)


class Recorder(MemoryTickTopic):
    """What was published, as the consumer will read it."""

    @property
    def ticks(self) -> list[tuple[str, datetime]]:
        events = [decode(key, value, now=datetime.now(UTC)) for key, value in self.published]
        return [(event.subject, event.time) for event in events]

    @property
    def ids(self) -> Counter[str]:
        return Counter(key.decode() for key, _ in self.published)


async def run_until(condition: Callable[[], Awaitable[bool]], *tickers: Ticker) -> None:
    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for ticker in tickers:
            group.create_task(ticker.run())
        while not await condition():  # noqa: ASYNC110 - the database has no event to wait for
            await asyncio.sleep(0.01)
        for ticker in tickers:
            ticker.stop()
            ticker.stop()


def ticker(
    store: PostgresStore, topic: TickTopic, metrics: Metrics | None = None, settings: TickerSettings = QUICK
) -> Ticker:
    return Ticker(store, topic, settings, metrics or Metrics(), Health())


async def silent(database: str) -> bool:
    """Whether no timer is due any more."""
    connection = await asyncpg.connect(database)
    try:
        return not await connection.fetchval("SELECT count(*) FROM conversation WHERE wake_at <= now()")
    finally:
        await connection.close()


async def overdue_conversations(store: PostgresStore, count: int) -> None:
    await ConversationService(store).apply(
        [message(at=NOW - 49 * HOUR, conversation_id=f"c-{number}") for number in range(count)]
    )


async def pass_time(database: str, span: timedelta) -> None:
    """As if so much time had gone by, for the timers and the deadlines."""
    seconds = span.total_seconds()
    shifts = ", ".join(earlier(name, f"{seconds} s") for name in ("wake_at", "idle_at", "expires_at"))
    await execute(database, f"UPDATE conversation SET {shifts}")


async def test_ten_thousand_that_are_due_at_once_get_one_tick_each(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 10_000)
    recorder, metrics = Recorder(), Metrics()

    await run_until(lambda: silent(database), ticker(store, recorder, metrics))

    assert len(recorder.ids) == 10_000
    assert set(recorder.ids.values()) == {1}
    assert counted(metrics, "conversation_ticks_total", result="emitted") == 10_000
    assert counted(metrics, "conversation_tick_delay_seconds_count") == 10_000


async def test_two_tickers_share_the_work(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 3000)
    one, other = Recorder(), Recorder()
    small = TickerSettings(interval_seconds=0.02, batch=50)

    async with opened(database) as second:
        await run_until(
            lambda: silent(database), ticker(store, one, settings=small), ticker(second, other, settings=small)
        )

    assert one.ids
    assert other.ids
    assert set((one.ids + other.ids).values()) == {1}
    assert len(one.ids + other.ids) == 3000


async def test_the_tick_makes_the_deadline_count(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 1)
    recorder = Recorder()

    await run_until(lambda: silent(database), ticker(store, recorder))
    ((key, at),) = recorder.ticks

    assert await ConversationService(store).apply([tick(at, conversation_id=key)]) == [Outcome.APPLIED]
    assert (await store.conversation("c-0"))[0][0].status is Status.EXPIRED
    assert await silent(database)


async def test_a_timer_whose_deadline_moved_is_set_anew(store: PostgresStore, database: str) -> None:
    service = ConversationService(store)
    await service.apply([message(at=NOW - 49 * HOUR, conversation_id="c-1")])
    await execute(database, "UPDATE conversation SET expires_at = now() + interval '1 h'")
    recorder, metrics = Recorder(), Metrics()

    await run_until(lambda: silent(database), ticker(store, recorder, metrics))

    assert recorder.ticks == []
    assert counted(metrics, "conversation_ticks_total", result="rearmed") == 1


async def test_a_tick_lost_between_commit_and_emission_comes_again(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 1)
    await store.take_due_timers(10)
    recorder = Recorder()

    await run_until(lambda: silent(database), ticker(store, recorder))
    assert recorder.ticks == []
    await execute(database, f"UPDATE conversation SET {earlier('wake_at', '901 s')}")
    await run_until(lambda: silent(database), ticker(store, recorder))

    assert recorder.ids == {"c-0": 1}


async def test_an_outage_of_kafka_does_not_multiply_ticks(store: PostgresStore, database: str) -> None:
    await ConversationService(store).apply([message(at=datetime.now(UTC) - 48 * HOUR)])
    recorder, metrics = Recorder(), Metrics()
    recorder.refuse = {0, 1, 2, 3}

    for _ in range(30):
        await run_until(lambda: silent(database), ticker(store, recorder, metrics))
        await pass_time(database, MINUTE)

    assert recorder.ticks == []
    assert 3 <= counted(metrics, "conversation_ticks_total", result="failed") <= 8


async def test_one_stuck_partition_starves_no_other(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 400)
    recorder, metrics = Recorder(), Metrics()
    recorder.go_away(1)
    others = {f"c-{number}" for number in range(400) if home_of(f"c-{number}".encode(), 4) != 1}
    settings = TickerSettings(interval_seconds=0.02, batch=20, max_unacknowledged=50, drain_seconds=0.1)

    await run_until(lambda: silent(database), ticker(store, recorder, metrics, settings))

    assert recorder.ids == dict.fromkeys(others, 1)
    assert counted(metrics, "conversation_ticks_total", result="failed") == 400 - len(others) - 12


async def test_no_lock_is_held_while_kafka_is_awaited(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 1)
    recorder = Recorder()
    recorder.go_away(0, 1, 2, 3)

    async def written_meanwhile() -> bool:
        if not await silent(database):
            return False
        outcomes = await ConversationService(store).apply([message(Author.AGENT, NOW, conversation_id="c-0")])
        recorder.come_back(0, 1, 2, 3)
        return outcomes == [Outcome.APPLIED]

    await run_until(written_meanwhile, ticker(store, recorder))

    assert recorder.ids == {"c-0": 1}


async def test_the_version_is_never_touched(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 1)

    await run_until(lambda: silent(database), ticker(store, Recorder()))

    assert (await store.conversation("c-0"))[1] == 1


async def test_a_timer_set_to_a_time_that_a_ticker_has_been_through_is_found(
    store: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SWEEP_SECONDS", 0.1)
    await ConversationService(store).apply([message(at=NOW - 49 * HOUR, conversation_id="c-first")])
    recorder = Recorder()

    async def late_one_is_emitted() -> bool:
        if recorder.ids == {"c-first": 1}:
            await ConversationService(store).apply([message(at=NOW - 50 * HOUR, conversation_id="c-late")])
        return bool(recorder.ids["c-late"])

    await run_until(late_one_is_emitted, ticker(store, recorder))

    assert recorder.ids == {"c-first": 1, "c-late": 1}


async def test_timers_before_a_place_are_left_for_a_later_look(store: PostgresStore) -> None:
    service = ConversationService(store)
    await service.apply([message(at=NOW - 50 * HOUR, conversation_id="c-1")])
    await service.apply([message(at=NOW - 49 * HOUR, conversation_id="c-2")])

    later = await store.take_due_timers(10, NOW - HOUR)
    earlier = await store.take_due_timers(10)

    assert [(timer.conversation_id, timer.wake_at) for timer in later] == [("c-2", NOW - HOUR)]
    assert [(timer.conversation_id, timer.wake_at) for timer in earlier] == [("c-1", NOW - 2 * HOUR)]


async def test_what_stays_without_effect_shows_as_overdue(store: PostgresStore, database: str) -> None:
    await overdue_conversations(store, 3)
    metrics = Metrics()

    await run_until(lambda: silent(database), ticker(store, Recorder(), metrics))

    assert counted(metrics, "conversation_expiry_overdue") == 3


async def test_overdue_are_those_that_no_ticker_has_been_at_and_those_that_it_has_pushed_back(
    store: PostgresStore,
) -> None:
    await overdue_conversations(store, 5)
    now = datetime.now(UTC)
    await ConversationService(store).apply([message(at=now - 48 * HOUR + 5 * MINUTE, conversation_id="c-soon")])
    await ConversationService(store).apply([message(at=now - 48 * HOUR, conversation_id="c-just-now")])

    before = await store.overdue()
    taken = await store.take_due_timers(3)
    between = await store.overdue()
    await store.take_due_timers(10)
    after = await store.overdue()

    assert len(taken) == 3
    assert (before, between, after) == (5, 5, 5)


@pytest.mark.parametrize(("late", "pause"), [(10, 60), (300, 300), (7200, 900)])
async def test_the_next_ring_is_paced_by_how_late_it_is(
    store: PostgresStore, database: str, late: int, pause: int
) -> None:
    await ConversationService(store).apply([message(at=NOW)])
    await execute(database, f"UPDATE conversation SET wake_at = now(), expires_at = now() - interval '{late} s'")

    (timer,) = await store.take_due_timers(10)

    connection = await asyncpg.connect(database)
    wake_at = await connection.fetchval("SELECT wake_at FROM conversation")
    await connection.close()
    assert abs((wake_at - timer.now).total_seconds() - pause) < 5
