"""What only PostgreSQL can show: row locks, refused values, timers, transitions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
import pytest

from consumer.errors import (
    ConcurrencyError,
    InvalidEventError,
    RefusedError,
    StaleOwnerError,
    UnavailableError,
)
from consumer.history.replay import replay
from consumer.lifecycle.model import Author, Event, Outcome, Policy, Status
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.service.batch import Batch
from consumer.service.ports import NO_CONVERSATIONS, Conversations, EventsById, Locking
from consumer.service.service import ConversationService, RetryPolicy
from tests.builders import HOUR, MINUTE, close, goodbye, message, tick
from tests.conftest import opened
from tests.races import counted
from tests.stack.database import execute
from tests.stack.roles import as_owner

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)


@asynccontextmanager
async def outsider(url: str, *statements: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody who runs statements and does not commit before the end of the block."""
    connection = await asyncpg.connect(url)
    transaction = connection.transaction()
    await transaction.start()
    try:
        for statement in statements:
            await connection.execute(statement)
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def apply(store: PostgresStore, *events: Event) -> list[Outcome]:
    return await ConversationService(store).apply(events)


LOCK_C1 = "SELECT 1 FROM conversation WHERE conversation_id = 'c-1' FOR UPDATE"
INSERT_C1 = """INSERT INTO conversation (conversation_id, version, session, status, opened_at, last_activity_at,
    user_messages, agent_messages, expires_at) VALUES ('c-1', 1, 1, 'pending', now(), now(), 0, 0, now())"""


class TestRowLocks:
    async def test_a_held_row_costs_its_neighbours_nothing(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR), message(at=NOW - HOUR, conversation_id="c-2"))
        service = ConversationService(store, retry=RetryPolicy(attempts=2))

        async with outsider(database, LOCK_C1):
            with pytest.raises(ConcurrencyError) as caught:
                await service.apply([message(at=NOW), message(at=NOW, conversation_id="c-2")])

        assert caught.value.conversation_ids == {"c-1"}
        assert (await store.conversation("c-2"))[1] == 2

    async def test_a_released_row_is_written_without_another_call(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR))
        metrics = Metrics()
        backing_off = asyncio.Event()

        async def sleep(seconds: float) -> None:
            backing_off.set()
            await asyncio.sleep(seconds)

        service = ConversationService(store, metrics=metrics, retry=RetryPolicy(attempts=50), sleep=sleep)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group, outsider(database, LOCK_C1):
            applying = group.create_task(service.apply([message(at=NOW)]))
            await backing_off.wait()

        assert applying.result() == [Outcome.APPLIED]
        assert counted(metrics, "conversation_retries_total", reason="lock") >= 1

    async def test_a_row_that_somebody_is_inserting_costs_its_neighbours_nothing(
        self, store: PostgresStore, database: str
    ) -> None:
        service = ConversationService(store, retry=RetryPolicy(attempts=2))
        events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(8)]

        async with outsider(database, INSERT_C1):
            with pytest.raises(ConcurrencyError) as caught:
                await service.apply(events)

        assert caught.value.conversation_ids == {"c-1"}
        assert await rows(database, "SELECT count(*) FROM conversation") == [(7,)]

    async def test_contention_ends_by_locking_before_reading(self, store: PostgresStore, database: str) -> None:
        metrics = Metrics()
        await apply(store, message(at=NOW - HOUR))
        service = ConversationService(AlwaysBeaten(store), metrics=metrics, retry=RetryPolicy(lock_after=3))

        assert await service.apply([message(at=NOW)]) == [Outcome.APPLIED]

        assert counted(metrics, "conversation_lock_escalations_total") == 1
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 3
        assert counted(metrics, "conversation_operation_retries_sum") == 3

    async def test_lost_locks_are_lost_races(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR))
        metrics = Metrics()
        service = ConversationService(store, metrics=metrics, retry=RetryPolicy(attempts=5, lock_after=2))

        async with outsider(database, LOCK_C1):
            with pytest.raises(ConcurrencyError):
                await service.apply([message(at=NOW)])

        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 5
        assert counted(metrics, "conversation_retries_total", reason="lock") == 4
        assert counted(metrics, "conversation_lock_escalations_total") == 0

    async def test_many_blocked_inserts_hold_the_guard_for_a_moment_only(
        self, store: PostgresStore, database: str
    ) -> None:
        inserts = [INSERT_C1.replace("c-1", f"c-{number}") for number in range(0, 400, 8)]
        events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(400)]
        service = ConversationService(store, retry=RetryPolicy(attempts=1))

        async with outsider(database, *inserts), asyncio.timeout(10):
            with pytest.raises(ConcurrencyError):
                await service.apply(events)

    async def test_a_held_guard_is_an_outage(self, store: PostgresStore, database: str) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        batch = Batch([message(at=NOW)], Progress(PLACE, 0, 1))

        async with outsider(database, "SELECT 1 FROM kafka_offset FOR UPDATE"):
            with pytest.raises(UnavailableError):
                await ConversationService(store).consume(batch, asyncio.sleep)

        assert await store.conversation("c-1") == ([], 0)

    async def test_a_stalled_owner_is_ended_by_the_database(self, database: str) -> None:
        progress = Progress(PLACE, 0, 1)
        async with opened(database, idle_in_transaction_timeout_seconds=0.2) as stalled, opened(database) as successor:
            await stalled.create_offset(PLACE, StoredOffset("cluster", 0))
            with pytest.raises(UnavailableError):
                async with stalled.attempt({"c-1": [message(at=NOW)]}, progress, Locking.PESSIMISTIC):
                    await until_applied(ConversationService(successor), progress)

        assert await rows(database, "SELECT next_offset FROM kafka_offset") == [(1,)]

    async def test_the_guard_of_another_owner_stops_this_one(self, store: PostgresStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 5))

        with pytest.raises(StaleOwnerError):
            await ConversationService(store).consume(Batch([message(at=NOW)], Progress(PLACE, 0, 1)), asyncio.sleep)


async def until_applied(service: ConversationService, progress: Progress) -> None:
    """The successor's side: an outage until the stalled owner's lock is gone."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await service.consume(Batch([message(at=NOW)], progress), asyncio.sleep)
            except UnavailableError:
                await asyncio.sleep(0)


class AlwaysBeaten(PostgresStore):
    """Another writer comes between every read and its write, but not under a lock."""

    def __init__(self, store: PostgresStore) -> None:
        super().__init__(store._engine)
        self._other_writer = ConversationService(store)

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator[PostgresAttempt]:
        async with super().attempt(events, progress, locking, cached) as attempt:
            if locking is Locking.OPTIMISTIC:
                await self._other_writer.apply([message(at=NOW - MINUTE)])
            yield attempt


class TestRefusedValues:
    async def test_only_the_refused_event_is_left_out(self, store: PostgresStore) -> None:
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(6)]
        events[2] = message(at=NOW, conversation_id="c-2", event_id="nul\0")
        events[4] = message(at=NOW, conversation_id="c-4", event_id="\ud800")
        batch = Batch(events, Progress(PLACE, 0, 6))

        await ConversationService(store).consume(batch, asyncio.sleep)

        assert batch.refused == [2, 4]
        assert batch.outcomes.count(Outcome.APPLIED) == 4
        assert (await store.stored_offsets())[0][1].next_offset == 0

    async def test_one_among_others_of_its_conversation_is_left_out_in_order(self, store: PostgresStore) -> None:
        events: list[Event] = [
            message(at=NOW),
            message(at=NOW, event_id="nul\0"),
            close(at=NOW + MINUTE),
            message(at=NOW),
        ]
        batch = Batch(events)

        await ConversationService(store).consume(batch, asyncio.sleep)

        assert batch.outcomes == [Outcome.APPLIED, Outcome.DEAD_LETTER, Outcome.APPLIED, Outcome.LATE]

    async def test_a_library_caller_gets_the_contracts_error_before_anything_is_written(
        self, store: PostgresStore, database: str
    ) -> None:
        with pytest.raises(InvalidEventError, match="id: "):
            await apply(store, message(at=NOW), message(at=NOW, event_id="nul\0"))

        assert await rows(database, "SELECT count(*) FROM conversation") == [(0,)]

    async def test_a_library_caller_learns_of_what_only_the_database_refuses(
        self, store: PostgresStore, database: str
    ) -> None:
        await execute(as_owner(database), "ALTER TABLE conversation_event ADD CHECK (actor <> 'agent')")

        with pytest.raises(RefusedError, match="m-"):
            await apply(store, message(at=NOW), message(Author.AGENT, NOW, conversation_id="c-2"))

        assert (await store.conversation("c-1"))[1] == 1

    async def test_a_refusal_is_reported_even_if_another_conversation_is_contended(
        self, store: PostgresStore, database: str
    ) -> None:
        await execute(as_owner(database), "ALTER TABLE conversation_event ADD CHECK (actor <> 'agent')")
        await apply(store, message(at=NOW - HOUR))
        service = ConversationService(store, retry=RetryPolicy(attempts=2))
        events = [message(at=NOW), message(Author.AGENT, NOW, conversation_id="c-2", event_id="refused")]

        async with outsider(database, LOCK_C1):
            with pytest.raises(RefusedError, match="refused"):
                await service.apply(events)

    async def test_no_event_overtakes_a_contended_one_of_its_conversation(
        self, store: PostgresStore, database: str
    ) -> None:
        await execute(as_owner(database), "ALTER TABLE conversation_event ADD CHECK (actor <> 'agent')")
        await apply(store, message(at=NOW - HOUR))
        service = ConversationService(store, retry=RetryPolicy(attempts=2))
        refused = message(Author.AGENT, NOW, conversation_id="c-2")
        events = [message(at=NOW - MINUTE), message(at=NOW, conversation_id="c-3"), refused, message(at=NOW)]

        async with outsider(database, LOCK_C1):
            with pytest.raises(RefusedError):
                await service.apply(events)

        assert (await store.conversation("c-1"))[1] == 1
        assert (await store.conversation("c-3"))[1] == 1


class TestTimes:
    async def test_wall_clocks_of_a_caller_are_turned_into_utc_first(self, store: PostgresStore) -> None:
        berlin = datetime(2026, 10, 24, 12, tzinfo=ZoneInfo("Europe/Berlin"))

        await apply(store, message(at=berlin))

        (session,), _ = await store.conversation("c-1")
        assert session.expires_at == berlin.astimezone(UTC) + 48 * HOUR
        history = await store.history("c-1")
        assert replay("c-1", history, Policy()).sessions == (session,)


class TestTimer:
    async def wake_at(self, url: str) -> datetime | None:
        ((at,),) = await rows(url, "SELECT wake_at FROM conversation")
        assert at is None or isinstance(at, datetime)
        return at

    async def test_it_is_set_to_the_next_deadline(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW))

        assert await self.wake_at(database) == NOW + 48 * HOUR

    async def test_a_renewal_leaves_it_alone(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - HOUR), message(at=NOW))

        await apply(store, message(at=NOW + MINUTE / 60))

        assert await self.wake_at(database) == NOW + 48 * HOUR

    async def test_a_nearer_deadline_lowers_it(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW))

        await apply(store, message(Author.AGENT, NOW))

        assert await self.wake_at(database) == NOW + 15 * MINUTE

    async def test_a_closing_clears_it(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW))

        await apply(store, goodbye(NOW))

        assert await self.wake_at(database) is None

    async def test_a_reinstatement_sets_it_again(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - 49 * HOUR), tick(NOW))

        assert await apply(store, message(at=NOW - 2 * HOUR)) == [Outcome.REINSTATED]

        assert await self.wake_at(database) == NOW + 46 * HOUR


class TestTransitions:
    async def test_each_is_put_into_the_outbox_with_its_version(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW - MINUTE), message(at=NOW), close(Status.AGENT_CLOSED, NOW, reason="done"))

        outbox = await rows(
            database,
            "SELECT conversation_id, session, version, from_status, to_status, actor, reason, occurred_at "
            "FROM transition_outbox ORDER BY id",
        )

        assert outbox == [
            ("c-1", 1, 1, None, "pending", "user", None, NOW - MINUTE),
            ("c-1", 1, 3, "pending", "agent_closed", "agent-7", "done", NOW),
        ]
