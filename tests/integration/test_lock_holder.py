"""A row that somebody holds: who that is, so that an operator can end it."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import asyncpg
import pytest

from consumer.errors import ConcurrencyError, UnavailableError
from consumer.offsets import Partition, StoredOffset
from consumer.postgres.client import APPLICATION
from consumer.postgres.store import PostgresStore
from consumer.service.ports import LockHolder
from consumer.service.service import ConversationService, RetryPolicy
from tests.builders import message
from tests.conftest import opened
from tests.stack.citus import workers_of
from tests.stack.database import connected
from tests.stack.roles import as_owner
from tests.stack.silent_session import silent_within_a_copy

NOW = datetime.now(UTC)
LOCK = "SELECT 1 FROM conversation WHERE conversation_id = 'c-1' FOR UPDATE"
WAITING = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted"
INSERT = """INSERT INTO conversation (conversation_id, version, session, status, opened_at, last_activity_at,
    user_messages, agent_messages, expires_at) VALUES ('c-1', 1, 1, 'pending', now(), now(), 0, 0, now())"""


@asynccontextmanager
async def holding(url: str, statement: str) -> AsyncIterator[LockHolder]:
    """Somebody who runs a statement and does not commit; as the database sees that process."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "back-office"})
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute(statement)
        pid, user, since = await connection.fetchrow("SELECT pg_backend_pid(), current_user::text, now()")
        yield LockHolder(pid, "back-office", user, since, "idle in transaction")
    finally:
        await transaction.rollback()
        await connection.close()


async def test_a_row_that_is_free_has_no_holder(store: PostgresStore) -> None:
    await ConversationService(store).apply([message(at=NOW)])

    assert await store.lock_holder("c-1") is None


async def test_a_conversation_that_is_unknown_has_no_holder_and_is_not_made(store: PostgresStore) -> None:
    assert await store.lock_holder("c-1") is None

    assert await store.conversation("c-1") == ([], 0)


async def test_who_holds_a_row_is_named_within_a_second(store: PostgresStore, database: str) -> None:
    await ConversationService(store).apply([message(at=NOW)])

    async with holding(database, LOCK) as holder:
        started = time.monotonic()
        found = await store.lock_holder("c-1")
        elapsed = time.monotonic() - started

    assert found == holder
    assert elapsed < 1


async def test_who_is_inserting_a_row_is_named(store: PostgresStore, database: str) -> None:
    async with holding(database, INSERT) as holder:
        assert await store.lock_holder("c-1") == holder

    assert await store.conversation("c-1") == ([], 0)


async def test_who_holds_the_table_is_named(store: PostgresStore, database: str) -> None:
    async with holding(database, "LOCK TABLE conversation IN ACCESS EXCLUSIVE MODE") as holder:
        assert await store.lock_holder("c-1") == holder


async def test_a_lock_on_a_table_is_an_outage_to_workers_and_tickers(store: PostgresStore, database: str) -> None:
    place = Partition("group", "events", 0)

    async with holding(database, "LOCK TABLE conversation, kafka_offset IN ACCESS EXCLUSIVE MODE"):
        for asked in (
            store.stored_offset(place),
            store.create_offset(place, StoredOffset("cluster", 0)),
            store.take_due_timers(10),
            store.overdue(),
            ConversationService(store).apply([message(at=NOW)]),
        ):
            with pytest.raises(UnavailableError, match="another transaction holds the table"):
                await asked

    assert await store.stored_offset(place) is None


async def test_so_is_a_lock_that_lets_rows_be_read_as_an_index_takes_it(store: PostgresStore, database: str) -> None:
    service = ConversationService(store)
    await service.apply([message(at=NOW)])

    async with holding(database, "LOCK TABLE conversation IN SHARE MODE"):
        with pytest.raises(UnavailableError, match="another transaction holds the table"):
            await service.apply([message(at=NOW)])

    assert (await store.conversation("c-1"))[1] == 1


async def test_the_holder_is_named_not_others_who_wait(store: PostgresStore, database: str) -> None:
    await ConversationService(store).apply([message(at=NOW)])

    async with opened(database, lock_timeout_seconds=5) as waiting, holding(database, LOCK) as holder:
        service = ConversationService(waiting, retry=RetryPolicy(attempts=1))
        waiters = [asyncio.create_task(service.apply([message(at=NOW)])) for _ in range(3)]
        await until_waiting(database, 3)

        found = [await store.lock_holder("c-1") for _ in range(2)]

    await asyncio.wait(waiters)
    assert found == [holder, holder]
    assert all(waiter.exception() is None or isinstance(waiter.exception(), ConcurrencyError) for waiter in waiters)


async def test_it_ends_in_time_where_no_connection_is_free(database: str) -> None:
    async with opened(database, writers=1) as store, store._connection("load"), store._connection("load"):
        async with asyncio.timeout(1.5):
            assert await store.lock_holder("c-1") is None


async def test_several_may_ask_at_once(store: PostgresStore, database: str) -> None:
    await ConversationService(store).apply([message(at=NOW)])

    async with holding(database, LOCK) as holder:
        # The look-up is short, and a new connection may take as long.
        await asyncio.gather(*(store.now() for _ in range(6)))

        assert await asyncio.gather(*(store.lock_holder("c-1") for _ in range(3))) == [holder] * 3


async def test_a_user_without_rights_on_other_sessions_still_learns_the_process(
    store: PostgresStore, database: str
) -> None:
    await ConversationService(store).apply([message(at=NOW)])

    async with holding(as_owner(database), LOCK) as holder:
        assert await store.lock_holder("c-1") == replace(holder, since=None, state="")


async def until_waiting(url: str, count: int) -> None:
    """Until so many sessions wait for a lock, on whatever node of a cluster."""
    async with AsyncExitStack() as stack, asyncio.timeout(10):
        nodes = [await stack.enter_async_context(connected(node)) for node in (url, *await workers_of(url))]
        found = 0
        while found < count:
            found = sum([await node.fetchval(WAITING) for node in nodes])


@pytest.fixture(autouse=True)
async def nothing_is_left(store: PostgresStore) -> AsyncIterator[None]:
    """Whatever was looked up, the pool is whole afterwards."""
    yield
    assert store._pool.in_use == 0
    assert await store.answers()


class TestSilentClient:
    """A client that falls silent within a statement: no timeout of the server's ends its session."""

    async def test_its_session_is_ended_once_no_statement_could_take_so_long(
        self, store: PostgresStore, database: str
    ) -> None:
        async with silent_within_a_copy(database, APPLICATION) as connection:
            assert await store.end_silent_sessions(60) == 0

            assert await store.end_silent_sessions(0) == 1

            async with asyncio.timeout(5):
                while not connection.is_closed():  # noqa: ASYNC110 - the server closes it
                    await asyncio.sleep(0.01)

    async def test_another_program_is_left_alone(self, store: PostgresStore, database: str) -> None:
        async with silent_within_a_copy(database, "back-office") as connection:
            assert await store.end_silent_sessions(0) == 0

            assert not connection.is_closed()

    @pytest.mark.parametrize("statement", ["SELECT pg_sleep(60)", "BEGIN"])
    async def test_a_session_that_works_or_is_idle_is_left_alone(
        self, store: PostgresStore, database: str, statement: str
    ) -> None:
        connection = await asyncpg.connect(database, server_settings={"application_name": APPLICATION})
        working = asyncio.create_task(connection.execute(statement))
        await asyncio.wait([working], timeout=0.2)

        ended = await store.end_silent_sessions(0)

        assert ended == 0
        assert not connection.is_closed()
        connection.terminate()
        await asyncio.gather(working, return_exceptions=True)
