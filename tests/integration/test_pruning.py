"""Old history goes; conversations, and what duplicates are known by, stay as they must."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consumer.commands import prune
from consumer.commands.prune import Pruned, PrunePlan, carry_out
from consumer.errors import ConsumerError, UnavailableError
from consumer.lifecycle.model import Outcome, Status
from consumer.observability.metrics import Metrics
from consumer.offsets import StoredOffset
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService, RetryPolicy
from tests.builders import HOUR, MINUTE, close, message
from tests.conftest import aged, opened
from tests.integration.test_outages import KILL_OTHERS
from tests.integration.test_postgres import PLACE, apply, outsider, rows
from tests.races import counted
from tests.stack.database import execute

NOW = datetime.now(UTC)
KEPT_ELSEWHERE = ("conversation", "conversation_session_archive", "transition_outbox", "kafka_offset")


async def planned(store: PostgresStore) -> PrunePlan:
    horizon = timedelta(days=30)
    return PrunePlan(horizon, await store.now() - horizon, {}, *await store.history_size())


async def pruned(store: PostgresStore, plan: PrunePlan | None = None, **options: Any) -> Pruned:
    stopping = options.pop("stopping", asyncio.Event())
    return await carry_out(store, plan or await planned(store), stopping, **options)


@pytest.fixture
async def old_and_young(store: PostgresStore, database: str) -> PostgresStore:
    """1,600 old messages in some forty pages, or ten of each shard, and one young one."""
    await apply(store, *(message(at=NOW - HOUR, conversation_id=f"c-{number}") for number in range(1600)))
    await aged(database, 31)
    await apply(store, message(at=NOW, event_id="young"))
    return store


class TestWhatGoes:
    async def test_old_rows_go_and_young_ones_stay(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR), message(at=NOW - HOUR))
        await aged(database, 1.01)
        await apply(store, message(at=NOW - HOUR, event_id="in time"))
        await aged(database, 28.99)
        await apply(store, message(at=NOW, event_id="young"))

        done = await pruned(store)

        assert (done.rows, done.whole) == (2, True)
        assert [row.event_id for row, _ in await store.history("c-1")] == ["in time", "young"]

    async def test_an_event_of_long_ago_stays_if_it_came_of_late(self, store: PostgresStore) -> None:
        await apply(store, message(at=NOW - 365 * 24 * HOUR))

        assert (await pruned(store)).rows == 0

    async def test_nothing_but_history_goes(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR), close(at=NOW - MINUTE), message(at=NOW))
        await store.create_offset(PLACE, StoredOffset("cluster", 5))
        await aged(database, 365)
        before = [await rows(database, f"SELECT * FROM {table}") for table in KEPT_ELSEWHERE]

        await pruned(store)

        assert await rows(database, "SELECT count(*) FROM conversation_event") == [(0,)]
        assert [await rows(database, f"SELECT * FROM {table}") for table in KEPT_ELSEWHERE] == before
        assert all(before)

    async def test_a_count_removes_nothing(self, old_and_young: PostgresStore, database: str) -> None:
        assert (await pruned(old_and_young, dry_run=True)).rows == 1600

        assert await rows(database, "SELECT count(*) FROM conversation_event") == [(1601,)]

    async def test_an_empty_history_is_pruned_at_once(self, store: PostgresStore) -> None:
        done = await pruned(store)

        assert (done.rows, done.whole) == (0, True)


class TestAfterwards:
    async def test_a_duplicate_within_the_horizon_is_still_one(self, store: PostgresStore, database: str) -> None:
        event = message(at=NOW - HOUR)
        await apply(store, event)
        await aged(database, 29)

        await pruned(store)

        assert await apply(store, event) == [Outcome.DUPLICATE]

    async def test_beyond_the_horizon_a_duplicate_is_an_event(self, store: PostgresStore, database: str) -> None:
        event = message(at=NOW - HOUR)
        await apply(store, event)
        await aged(database, 31)

        await pruned(store)

        assert await apply(store, event) == [Outcome.APPLIED]

    async def test_versions_go_on(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR), message(at=NOW - HOUR))
        await aged(database, 31)
        await pruned(store)

        await apply(store, message(at=NOW - MINUTE), close(at=NOW))

        assert [row.version for row, _ in await store.history("c-1")] == [3, 4]
        assert (await store.conversation("c-1"))[1] == 4

    async def test_a_deadline_that_passes_takes_a_version_of_its_own(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - 200 * HOUR), message(at=NOW - 100 * HOUR))
        await aged(database, 31)
        await pruned(store)

        await apply(store, message(at=NOW - HOUR))

        assert [(row.version, row.to_status) for row, _ in await store.history("c-1")] == [
            (4, Status.EXPIRED),
            (5, Status.PENDING),
        ]


class StopsAfterTwo(PostgresStore):
    """A signal arrives while the second batch is removed."""

    def __init__(self, store: PostgresStore, stopping: asyncio.Event) -> None:
        super().__init__(store._engine)
        self._stopping = stopping
        self._calls = 0

    async def prune(self, pages: range, before: datetime) -> int:
        self._calls += 1
        if self._calls == 2:
            self._stopping.set()
        return await super().prune(pages, before)


class DiesAfterTwo(PostgresStore):
    """The server ends the connection while the third batch is removed."""

    def __init__(self, store: PostgresStore, url: str) -> None:
        super().__init__(store._engine)
        self._url = url
        self._calls = 0

    async def prune(self, pages: range, before: datetime) -> int:
        self._calls += 1
        if self._calls == 3:
            await execute(self._url, KILL_OTHERS)
        return await super().prune(pages, before)


class TestStopping:
    async def test_it_ends_between_two_transactions_and_the_next_run_removes_the_rest(
        self, old_and_young: PostgresStore
    ) -> None:
        stopping = asyncio.Event()

        first = await pruned(StopsAfterTwo(old_and_young, stopping), stopping=stopping, batch_pages=2)
        second = await pruned(old_and_young, batch_pages=2)
        third = await pruned(old_and_young, batch_pages=2)

        assert (first.whole, second.whole) == (False, True)
        assert 0 < first.rows < 1600
        assert (first.rows + second.rows, third.rows) == (1600, 0)
        assert [row.event_id for row, _ in await old_and_young.history("c-1")] == ["young"]

    async def test_a_crash_costs_a_transaction_and_the_next_run_removes_the_rest(
        self, old_and_young: PostgresStore, database: str
    ) -> None:
        with pytest.raises(UnavailableError):
            await pruned(DiesAfterTwo(old_and_young, database), batch_pages=2)
        ((left,),) = await rows(database, "SELECT count(*) FROM conversation_event")

        assert (await pruned(old_and_young)).rows == left - 1 < 1600


class TestAmongWriters:
    async def test_a_writer_does_not_wait_for_an_unfinished_transaction(
        self, old_and_young: PostgresStore, database: str
    ) -> None:
        metrics = Metrics()
        service = ConversationService(old_and_young, metrics=metrics, retry=RetryPolicy(attempts=1))

        async with outsider(database, "DELETE FROM conversation_event WHERE event_id <> 'young'"):
            outcomes = await service.apply([message(at=NOW, conversation_id=f"c-{number}") for number in range(1600)])

        assert set(outcomes) == {Outcome.APPLIED}

    async def test_a_writer_goes_on_and_nothing_of_it_is_lost(self, database: str, store: PostgresStore) -> None:
        ids = [f"c-{number}" for number in range(200)]
        for _ in range(20):
            await apply(store, *(message(at=NOW - HOUR, conversation_id=key) for key in ids))
        await aged(database, 31)
        metrics = Metrics()
        removed = 0

        async with opened(database) as other, asyncio.TaskGroup() as group:
            writing = group.create_task(write(ConversationService(other, metrics=metrics), ids, rounds=30))
            while not writing.done():
                removed += (await pruned(store, batch_pages=1)).rows

        assert removed == 4000
        assert counted(metrics, "conversation_retries_total") == 0
        assert await rows(database, "SELECT DISTINCT version FROM conversation") == [(50,)]
        assert await rows(database, "SELECT count(*), min(version), max(version) FROM conversation_event") == [
            (6000, 21, 50)
        ]

    async def test_two_at_once_remove_what_one_would(self, old_and_young: PostgresStore, database: str) -> None:
        async with opened(database) as other:
            runs = await asyncio.gather(pruned(old_and_young, batch_pages=1), pruned(other, batch_pages=1))

        assert sum(run.rows for run in runs) == 1600

    async def test_it_waits_for_somebody_who_alters_the_table(
        self, old_and_young: PostgresStore, database: str
    ) -> None:
        plan = await planned(old_and_young)

        async with (
            asyncio.timeout(30),
            asyncio.TaskGroup() as group,
            outsider(database, "LOCK TABLE conversation_event"),
        ):
            pruning = group.create_task(pruned(old_and_young, plan))
            await until_somebody_waits(database)

        assert pruning.result().rows == 1600

    async def test_it_does_not_wait_for_ever(
        self, old_and_young: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(prune, "RETRY_SECONDS", 0.3)
        plan = await planned(old_and_young)

        async with outsider(database, "LOCK TABLE conversation_event"):
            with pytest.raises(ConsumerError, match="somebody holds the table conversation_event: run this again"):
                await pruned(old_and_young, plan)


async def write(service: ConversationService, ids: list[str], rounds: int) -> None:
    for _ in range(rounds):
        await service.apply([message(at=NOW, conversation_id=key) for key in ids])


async def until_somebody_waits(url: str) -> None:
    waiting = """SELECT 1 FROM pg_locks JOIN pg_database AS here ON here.oid = database
        WHERE datname = current_database() AND NOT granted"""
    while not await rows(url, waiting):
        pass
