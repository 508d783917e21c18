"""What every store promises: the same suite over the dictionary and over PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from consumer.errors import ContentionError, StaleOwnerError, UnavailableError
from consumer.lifecycle.model import Conversation, Event, Outcome, Policy, Status
from consumer.lifecycle.rules import fold
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.postgres.store import PostgresStore
from consumer.service import service
from consumer.service.batch import Batch
from consumer.service.ports import Attempt, Decided, Locking, Lost, Snapshot
from tests.builders import HOUR, MINUTE, close, message, tick
from tests.conftest import opened
from tests.fakes import MemoryStore
from tests.races import counted
from tests.stack.citus import workers_of
from tests.stack.database import connected
from tests.stack.roles import copy_for_app
from tests.stack.services import Services

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 3)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOR NO KEY UPDATE%'"
WAITING_ON_CITUS = "SELECT count(*) FROM citus_lock_waits"
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
BLOCKED_ON_CITUS = "SELECT count(*) FROM citus_lock_waits WHERE blocking_gpid = citus_backend_gpid()"
END_OTHERS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"""
AnyStore = MemoryStore | PostgresStore


@pytest.fixture(params=["memory", "postgres"])
async def any_store(request: pytest.FixtureRequest, stack: Services, template: str) -> AsyncIterator[AnyStore]:
    if request.param == "memory":
        yield MemoryStore()
    else:
        async with copy_for_app(stack.postgres, template) as url, opened(url) as postgres:
            yield postgres


@pytest.fixture(params=[-1, 100], ids=["transactions", "two statements"])
def store(any_store: AnyStore, request: pytest.FixtureRequest) -> AnyStore:
    """Its attempts are transactions, or two statements where there are few events."""
    any_store.few = request.param
    return any_store


def by_id(*events: Event) -> dict[str, list[Event]]:
    grouped: dict[str, list[Event]] = {}
    for event in events:
        grouped.setdefault(event.conversation_id, []).append(event)
    return grouped


def decide(snapshot: Snapshot, *events: Event) -> Decided:
    return service.decide(snapshot, by_id(*events), Policy())


async def load(store: AnyStore, *events: Event) -> Snapshot:
    async with store.attempt(by_id(*events), None, Locking.OPTIMISTIC) as attempt:
        return attempt.snapshot


async def save(
    store: AnyStore, decided: Decided, progress: Progress | None = None, locking: Locking = Locking.OPTIMISTIC
) -> Lost:
    async with store.attempt({}, progress, locking) as attempt:
        return await attempt.save(decided)


async def has_attempts_of_few(store: AnyStore) -> None:
    """A transaction holds the guard meanwhile, so nobody goes on, and its connection is not replaced."""
    if isinstance(store, PostgresStore) and await store.layout() is not None:
        pytest.skip("on Citus an attempt is a transaction")


async def end_sessions(store: AnyStore) -> None:
    """As at a failover."""
    if isinstance(store, MemoryStore):
        store.database.restore(store.database.copied())
    else:
        async with store._connection("load") as connection:
            await connection.execute(END_OTHERS)


def locked(store: AnyStore, *events: Event, progress: Progress | None = None) -> AbstractAsyncContextManager[Attempt]:
    return store.attempt(by_id(*events), progress, Locking.PESSIMISTIC)


async def write(store: AnyStore, *events: Event) -> None:
    for event in events:
        assert not await save(store, decide(await load(store, event), event))


async def test_what_was_saved_is_loaded(store: AnyStore) -> None:
    events: list[Event] = [message(at=NOW - HOUR), close(Status.FAILED, NOW, reason="lost")]
    await write(store, *events)

    snapshot = await load(store, message())

    expected = fold(Conversation("c-1"), events, (), Policy(), NOW).after
    assert snapshot.conversations == {"c-1": expected}
    assert await store.conversation("c-1") == (list(expected.sessions), 2)


async def test_an_unknown_conversation_is_absent(store: AnyStore) -> None:
    snapshot = await load(store, message())

    assert (snapshot.conversations, snapshot.known) == ({}, {})
    assert abs(snapshot.now - datetime.now(UTC)) < MINUTE


async def test_what_is_cached_is_read_again_only_where_its_version_has_moved(store: AnyStore) -> None:
    await write(store, message(at=NOW - HOUR), message(at=NOW, conversation_id="c-2"))
    asked = by_id(message(), message(conversation_id="c-2"))
    read = (await load(store, *(events[0] for events in asked.values()))).conversations
    cached = {key: one._replace(sessions=(one.sessions[0]._replace(user_messages=99),)) for key, one in read.items()}
    await write(store, message(at=NOW))

    async with store.attempt(asked, None, Locking.OPTIMISTIC, cached) as attempt:
        read = attempt.snapshot.conversations

    assert (read["c-1"].version, read["c-1"].sessions[0].user_messages) == (2, 2)
    assert read["c-2"] is cached["c-2"]


async def test_what_is_cached_has_its_ids_and_older_sessions_read(store: AnyStore) -> None:
    first, second = message(at=NOW - 2 * HOUR), message(at=NOW)
    await write(store, first, close(at=NOW - HOUR), second)
    cached = (await load(store, second)).conversations

    async with store.attempt(by_id(first), None, Locking.OPTIMISTIC, cached) as attempt:
        snapshot = attempt.snapshot

    assert snapshot.known["c-1"] == {(first.source, first.event_id)}
    assert [session.number for session in snapshot.conversations["c-1"].sessions] == [1, 2]


async def test_only_the_ids_asked_for_are_known(store: AnyStore) -> None:
    first, second = message(at=NOW), message(at=NOW)
    await write(store, first, second)

    snapshot = await load(store, second, message())

    assert snapshot.known["c-1"] == {(second.source, second.event_id)}


async def test_a_tick_is_never_known(store: AnyStore) -> None:
    await write(store, message(event_id="same", source="both", at=NOW))

    snapshot = await load(store, tick(event_id="same", source="both"))

    assert not snapshot.known.get("c-1")


async def test_a_stale_version_loses_and_writes_nothing(store: AnyStore) -> None:
    await write(store, message(at=NOW - HOUR))
    stale = decide(await load(store, message()), late := message(at=NOW))
    await write(store, message(at=NOW))

    lost = await save(store, stale)

    assert lost == {"c-1": "version"}
    assert late.event_id not in [row.event_id for row, _ in await store.history("c-1")]


async def test_the_second_creation_loses(store: AnyStore) -> None:
    one = decide(await load(store, message()), message(at=NOW))
    other = decide(await load(store, message()), message(at=NOW))

    assert not await save(store, one)
    assert await save(store, other) == {"c-1": "version"}


async def test_winners_are_written_beside_losers(store: AnyStore) -> None:
    here, there = message(at=NOW), message(at=NOW, conversation_id="c-2")
    both = decide(await load(store, here, there), here, there)
    await write(store, message(at=NOW))

    lost = await save(store, both)

    assert set(lost) == {"c-1"}
    assert [row.event_id for row, _ in await store.history("c-2")] == [there.event_id]


async def test_superseded_sessions_are_kept_and_loaded_for_older_events(store: AnyStore) -> None:
    await write(store, message(at=NOW - 3 * HOUR), close(at=NOW - 2 * HOUR), message(at=NOW - HOUR))

    newer = await load(store, message(at=NOW))
    older = await load(store, message(at=NOW - 150 * MINUTE))

    sessions, _ = await store.conversation("c-1")
    assert [session.status for session in sessions] == [Status.AGENT_CLOSED, Status.PENDING]
    assert newer.conversations["c-1"].current == sessions[1]
    assert list(older.conversations["c-1"].sessions) == sessions


async def test_of_the_older_sessions_those_are_loaded_that_events_belong_to(store: AnyStore) -> None:
    for hours in (12, 9, 6, 3):
        await write(store, message(at=NOW - hours * HOUR), close(at=NOW - (hours - 1) * HOUR))
    sessions, _ = await store.conversation("c-1")

    of_the_second = await load(store, message(at=NOW), message(at=NOW - 9 * HOUR), message(at=NOW - 8 * HOUR))
    of_two = await load(store, message(at=NOW - 13 * HOUR), message(at=NOW - 6 * HOUR))

    assert [session.number for session in sessions] == [1, 2, 3, 4]
    assert list(of_the_second.conversations["c-1"].sessions) == [sessions[1], sessions[3]]
    assert list(of_two.conversations["c-1"].sessions) == [sessions[0], sessions[2], sessions[3]]


async def test_events_may_follow_a_session_that_was_opened_ahead_of_the_clock(store: AnyStore) -> None:
    now = datetime.now(UTC)
    await write(store, message(at=now - HOUR), close(at=now - MINUTE), message(at=now + timedelta(seconds=4)))

    await write(store, message(at=now + timedelta(seconds=4.5)))

    sessions, version = await store.conversation("c-1")
    assert ([session.number for session in sessions], version) == ([1, 2], 4)


async def test_many_late_events_of_a_conversation_are_decided_as_one_by_one(store: AnyStore) -> None:
    for hours in (12, 9, 6, 3):
        await write(store, message(at=NOW - hours * HOUR), close(at=NOW - (hours - 1) * HOUR))

    await write(store, *(message(at=NOW - 12 * HOUR + number * 10 * MINUTE) for number in range(54)))

    sessions, version = await store.conversation("c-1")
    history = await store.history("c-1")
    assert (len(sessions), version, len(history)) == (4, 62, 62)
    assert [row.session for row, _ in history[8:]] == [number for number in (1, 2, 3) for _ in range(18)]


async def test_an_older_session_can_be_reclassified(store: AnyStore) -> None:
    await write(store, message(at=NOW - 3 * HOUR), close(at=NOW - 2 * HOUR), message(at=NOW - HOUR))

    await write(store, close(Status.FAILED, NOW - 2 * HOUR + MINUTE))

    sessions, version = await store.conversation("c-1")
    assert [session.status for session in sessions] == [Status.FAILED, Status.PENDING]
    assert version == 4


async def test_the_history_keeps_every_field(store: AnyStore) -> None:
    event = close(Status.SUPPORT_CLOSED, NOW, reason="spam", actor="support-9")
    await write(store, event)

    ((row, recorded_at),) = await store.history("c-1")

    assert (row.source, row.event_id, row.requested) == (event.source, event.event_id, "support_closed")
    assert (row.actor, row.reason, row.occurred_at, row.outcome) == ("support-9", "spam", NOW, Outcome.APPLIED)
    assert (row.from_status, row.to_status, row.version, row.session) == (None, Status.SUPPORT_CLOSED, 1, 1)
    assert abs(recorded_at - datetime.now(UTC)) < MINUTE


class TestOffsets:
    async def test_a_row_is_made_once(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        await store.create_offset(PLACE, StoredOffset("cluster", 9))

        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 7)
        assert await store.stored_offset(Partition("group", "events", 4)) is None

    async def test_an_operator_sets_it_in_any_cluster(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event = message(at=NOW)
        await save(store, decide(await load(store, event), event), Progress(PLACE, 7, 12, next_mark=5))

        await store.set_offset(PLACE, StoredOffset("another", 3))

        stored = await store.stored_offset(PLACE)
        assert stored is not None
        assert (stored.cluster_id, stored.next_offset) == ("another", 3)

    async def test_an_owner_that_has_not_heard_of_an_operators_decision_writes_no_more(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))

        await store.set_offset(PLACE, StoredOffset("another", 7))

        with pytest.raises(StaleOwnerError):
            await save(store, Decided(NOW, ()), Progress(PLACE, 7, 12))

    async def test_it_moves_with_the_effects(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event = message(at=NOW)

        await save(store, decide(await load(store, event), event), Progress(PLACE, 7, 12))

        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 12)

    async def test_it_stays_while_anything_lost(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        stale = decide(await load(store, message()), message(at=NOW))
        await write(store, message(at=NOW))

        assert await save(store, stale, Progress(PLACE, 7, 12))
        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 7)

    async def test_each_transaction_leaves_a_mark_that_the_next_must_find(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        nothing = Decided(NOW, ())

        await save(store, nothing, Progress(PLACE, 7, 7, mark=0, next_mark=5))
        with pytest.raises(StaleOwnerError):
            await save(store, nothing, Progress(PLACE, 7, 12, mark=0, next_mark=6))
        await save(store, nothing, Progress(PLACE, 7, 12, mark=5, next_mark=6))

        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 12, 6)

    async def test_nothing_is_read_before_the_guard_is_held(self, any_store: AnyStore) -> None:
        store = any_store
        store.few = -1
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event, progress = message(at=NOW), Progress(PLACE, 7, 12)

        async with store.attempt({"c-1": [event]}, progress, Locking.OPTIMISTIC):
            with pytest.raises(UnavailableError):
                async with store.attempt({"c-1": [event]}, progress, Locking.OPTIMISTIC):
                    pytest.fail("read while somebody else held the guard")

    async def test_what_was_read_before_another_owner_went_on_is_not_written(self, any_store: AnyStore) -> None:
        await has_attempts_of_few(any_store)
        await any_store.create_offset(PLACE, StoredOffset("cluster", 7))
        event, progress = message(at=NOW), Progress(PLACE, 7, 12, next_mark=5)

        async with any_store.attempt(by_id(event), progress, Locking.OPTIMISTIC) as attempt:
            await save(any_store, Decided(NOW, ()), Progress(PLACE, 7, 7, next_mark=6))
            with pytest.raises(StaleOwnerError):
                await attempt.save(decide(attempt.snapshot, event))

        assert await any_store.conversation("c-1") == ([], 0)
        assert await any_store.stored_offset(PLACE) == StoredOffset("cluster", 7, 6)

    async def test_what_was_read_is_not_written_over_another_connection(self, any_store: AnyStore) -> None:
        await has_attempts_of_few(any_store)
        event = message(at=NOW)

        async with any_store.attempt(by_id(event), None, Locking.OPTIMISTIC) as attempt:
            await end_sessions(any_store)
            with pytest.raises(UnavailableError):
                await attempt.save(decide(attempt.snapshot, event))

        assert await any_store.conversation("c-1") == ([], 0)

    async def test_a_stale_owner_writes_nothing(self, store: AnyStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event = message(at=NOW)
        decided = decide(await load(store, event), event)

        with pytest.raises(StaleOwnerError):
            await save(store, decided, Progress(PLACE, 6, 12))
        with pytest.raises(StaleOwnerError):
            async with locked(store, event, progress=Progress(PLACE, 6, 12)):
                pass

        assert await store.conversation("c-1") == ([], 0)
        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 7)


class TestAttemptOfFewThatWaits:
    """Its one statement waits for a row under a snapshot from before, on PostgreSQL."""

    @pytest.fixture
    async def postgres(self, stack: Services, template: str) -> AsyncIterator[tuple[PostgresStore, asyncpg.Connection]]:
        """A store that waits for locks, and somebody else."""
        async with (
            copy_for_app(stack.postgres, template) as url,
            opened(url, lock_timeout_seconds=20) as store,
            connected(url) as other,
        ):
            yield store, other

    async def test_for_its_offset_finds_that_another_owner_has_committed(
        self, postgres: tuple[PostgresStore, asyncpg.Connection]
    ) -> None:
        store, other = postgres
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event = message(at=NOW)

        async with other.transaction():
            await other.execute("UPDATE kafka_offset SET mark = 9")
            saving = await saving_behind(other, store, event)

        with pytest.raises(StaleOwnerError):
            await saving
        assert await store.conversation("c-1") == ([], 0)
        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 7, 9)

    async def test_for_its_offset_goes_on_where_another_owner_has_given_up(
        self, postgres: tuple[PostgresStore, asyncpg.Connection]
    ) -> None:
        store, other = postgres
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        event = message(at=NOW)
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE kafka_offset SET mark = 9")

        saving = await saving_behind(other, store, event)
        await transaction.rollback()

        assert not await saving
        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 12, 5)

    @pytest.mark.parametrize(
        ("change", "lost"), [("version = version + 1", {"c-1": "version"}), ("wake_at = now()", {})]
    )
    async def test_for_a_conversation_loses_to_another_version_alone(
        self, postgres: tuple[PostgresStore, asyncpg.Connection], change: str, lost: dict[str, str]
    ) -> None:
        store, other = postgres
        await store.create_offset(PLACE, StoredOffset("cluster", 7))
        await write(store, message(at=NOW - MINUTE))
        event = message(at=NOW)

        async with other.transaction():
            await other.execute(f"UPDATE conversation SET {change}")
            saving = await saving_behind(other, store, event)

        assert await saving == lost
        assert await store.stored_offset(PLACE) == StoredOffset("cluster", 7 if lost else 12, 5)
        assert len(await store.history("c-1")) == (1 if lost else 2)

    async def test_for_its_offset_for_long_is_an_outage_and_no_conflict(self, stack: Services, template: str) -> None:
        metrics = Metrics()
        async with (
            copy_for_app(stack.postgres, template) as url,
            opened(url, metrics) as store,
            connected(url) as other,
        ):
            await store.create_offset(PLACE, StoredOffset("cluster", 7))
            batch = Batch([message(at=NOW)], Progress(PLACE, 7, 12))

            async with other.transaction():
                await other.execute("UPDATE kafka_offset SET mark = 9")
                with pytest.raises(UnavailableError, match="another owner"):
                    await service.ConversationService(store, metrics=metrics).consume(batch, asyncio.sleep)

            assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 0
            assert await store.conversation("c-1") == ([], 0)


async def saving_behind(holder: asyncpg.Connection, store: AnyStore, event: Event) -> asyncio.Task[Lost]:
    """Reads, decides and begins to save; returns once that waits for the end of the holder's transaction."""
    decided = decide(await load(store, event), event)
    saving = asyncio.create_task(save(store, decided, Progress(PLACE, 7, 12, next_mark=5)))
    blocked = BLOCKED_ON_CITUS if await holder.fetchval("SELECT to_regclass('citus_lock_waits')") else BLOCKED
    async with asyncio.timeout(20):
        while not await holder.fetchval(blocked):  # noqa: ASYNC110 - another session waits
            await asyncio.sleep(0.01)
    return saving


class TestLockedRows:
    async def test_cannot_be_lost(self, store: AnyStore) -> None:
        await write(store, message(at=NOW - HOUR))
        event = message(at=NOW)

        async with locked(store, event) as rows:
            lost = await rows.save(decide(rows.snapshot, event))

        assert not lost
        assert (await store.conversation("c-1"))[1] == 2

    async def test_are_lost_to_others_while_they_are_held(self, store: AnyStore) -> None:
        await write(store, message(at=NOW - HOUR), message(at=NOW - HOUR, conversation_id="c-2"))
        held, free = message(at=NOW), message(at=NOW, conversation_id="c-2")
        both = decide(await load(store, held, free), held, free)

        async with locked(store, held):
            with pytest.raises(ContentionError, match="lock"):
                await save(store, both)
            lost = await save(store, both, locking=Locking.SKIPPING)

        assert lost == {"c-1": "lock"}
        assert (await store.conversation("c-2"))[1] == 2

    async def test_leave_the_others_written_with_their_history_and_hold_the_offset(self, store: AnyStore) -> None:
        await write(store, message(at=NOW - HOUR), message(at=NOW - HOUR, conversation_id="c-2"))
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        held, free = message(at=NOW), message(at=NOW, conversation_id="c-2")
        both = decide(await load(store, held, free), held, free)

        async with locked(store, held):
            await save(store, both, Progress(PLACE, 0, 2), Locking.SKIPPING)

        assert [len(await store.history(key)) for key in ("c-1", "c-2")] == [1, 2]
        assert (stored := await store.stored_offset(PLACE)) is not None
        assert stored.next_offset == 0

    async def test_are_told_from_changed_ones(self, store: AnyStore) -> None:
        await write(store, message(at=NOW - HOUR))
        event = message(at=NOW)
        outdated = decide(await load(store, event), event)
        await write(store, message(at=NOW))

        assert await save(store, outdated, locking=Locking.SKIPPING) == {"c-1": "version"}

    async def test_that_somebody_is_about_to_insert_are_lost_alone(self, store: AnyStore) -> None:
        new = [message(at=NOW, conversation_id=f"n-{number}") for number in range(5)]
        decided = decide(await load(store, *new), *new)

        async with locked(store, new[3]) as rows:
            await rows.save(decide(rows.snapshot, new[3]))
            lost = await save(store, decided, locking=Locking.SKIPPING)

        assert lost == {"n-3": "lock"}
        assert [len(await store.history(f"n-{number}")) for number in range(5)] == [1, 1, 1, 1, 1]

    async def test_are_read_after_they_were_locked(self, store: AnyStore, stack: Services) -> None:
        await write(store, message(at=NOW - HOUR))
        event = message(at=NOW)
        holding, go_on = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with locked(store, event) as rows:
                holding.set()
                await go_on.wait()
                await rows.save(decide(rows.snapshot, event))

        async def follow() -> int:
            async with locked(store, event) as rows:
                return rows.snapshot.conversations["c-1"].version

        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            group.create_task(hold())
            await holding.wait()
            following = group.create_task(follow())
            await until_one_waits_for_a_lock(store, stack)
            go_on.set()

        assert following.result() == 2


async def until_one_waits_for_a_lock(store: AnyStore, stack: Services) -> None:
    if isinstance(store, MemoryStore):
        while not store.database.waiting:  # noqa: ASYNC110 - seconds are not what is waited for
            await asyncio.sleep(0)
        return
    connection = await asyncpg.connect(stack.postgres)
    waiting = WAITING_ON_CITUS if await workers_of(stack.postgres) else WAITING
    while not await connection.fetchval(waiting):  # noqa: ASYNC110 - another process waits
        await asyncio.sleep(0.01)
    await connection.close()


async def test_a_turn_has_the_oldest_transitions_and_deletes_them_with_its_commit(store: AnyStore) -> None:
    await write(store, message(at=NOW - HOUR), close(at=NOW))

    async with store.turn(1, 30) as batch:
        assert batch
        (opened_row,) = batch.rows
        await batch.delete()
    async with store.turn(10, 30) as batch:
        assert batch
        (closed_row,) = batch.rows

    assert (opened_row.version, opened_row.from_status, opened_row.to_status) == (1, None, "pending")
    assert (closed_row.version, closed_row.actor, closed_row.occurred_at) == (2, "agent-7", NOW)
    history = await store.history("c-1")
    assert [opened_row.recorded_at, closed_row.recorded_at] == [recorded_at for _, recorded_at in history]


async def test_what_changes_no_status_is_no_transition(store: AnyStore) -> None:
    await write(store, message(at=NOW - HOUR), message(at=NOW))

    assert (await store.backlog()).rows == 1


async def test_one_turn_at_a_time(store: AnyStore) -> None:
    await write(store, message(at=NOW))

    async with store.turn(10, 30) as first, store.turn(10, 30) as second:
        assert first
        assert second is None
    async with store.turn(10, 30) as next_one:
        assert next_one
        assert len(next_one.rows) == 1


async def test_a_turn_that_fails_deletes_nothing(store: AnyStore) -> None:
    await write(store, message(at=NOW))

    async def failing_turn() -> None:
        async with store.turn(10, 30) as batch:
            assert batch
            await batch.delete()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await failing_turn()

    assert (await store.backlog()).rows == 1


async def test_an_empty_outbox_has_no_backlog(store: AnyStore) -> None:
    assert await store.backlog() == (0, 0.0)
