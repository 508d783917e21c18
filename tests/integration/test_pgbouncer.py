"""What works through PgBouncer, with its own settings as they are by default. Skipped where it is not installed."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from consumer.errors import ConfigurationError, ContentionError
from consumer.lifecycle.model import Author, Outcome
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.postgres import migrations
from consumer.service.batch import Batch
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, close, message
from tests.conftest import opened
from tests.stack.database import new_database
from tests.stack.pgbouncer import PgBouncer
from tests.stack.roles import as_app
from tests.stack.services import Services

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)
PARAMETERS = "statement_timeout,lock_timeout,idle_in_transaction_session_timeout,jit,enable_seqscan"
IGNORED = f"ignore_startup_parameters = {PARAMETERS},enable_hashjoin,enable_mergejoin"

pytestmark = pytest.mark.needs("pgbouncer")


# One that refuses the parameters of a session, as it does by default, or one that ignores them.
POOLERS = [("session", ""), ("transaction", ""), ("transaction", IGNORED)]


@contextmanager
def pooling(server_url: str, *settings: str) -> Iterator[PgBouncer]:
    started = PgBouncer(server_url, *settings)
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module", params=POOLERS)
def pooler(template: str, request: pytest.FixtureRequest) -> Iterator[PgBouncer]:
    """It connects as the app."""
    with pooling(as_app(template), *request.param) as started:
        yield started


async def test_several_writers_write_through_it(pooler: PgBouncer, database: str) -> None:
    async def write(service: ConversationService, writer: int) -> list[Outcome]:
        keys = [f"{writer}-{number}" for number in range(20)]
        for author in (Author.USER, Author.AGENT):
            await service.apply([message(author, NOW - HOUR, conversation_id=key) for key in keys])
        await service.apply([close(at=NOW - MINUTE, conversation_id=key) for key in keys])
        return await service.apply([message(at=NOW, conversation_id=key) for key in keys])

    async with opened(pooler.url(database)) as one, opened(pooler.url(database)) as other:
        writers = [ConversationService(one), ConversationService(other)] * 4
        async with asyncio.timeout(60):
            outcomes = await asyncio.gather(*(write(service, number) for number, service in enumerate(writers)))
        sessions, version = await one.conversation("7-19")

    assert outcomes == [[Outcome.APPLIED] * 20] * 8
    assert (len(sessions), version) == (2, 5)


async def test_all_share_one_conversation_through_it(pooler: PgBouncer, database: str) -> None:
    async with opened(pooler.url(database)) as one, opened(pooler.url(database)) as other:
        writers = [ConversationService(one), ConversationService(other)] * 4
        async with asyncio.timeout(60):
            await asyncio.gather(*(service.apply([message(at=NOW)]) for service in writers for _ in range(5)))
        _, version = await one.conversation("c-1")

    assert version == 40


async def test_limits_hold_in_each_transaction_and_end_with_it(pooler: PgBouncer, database: str) -> None:
    async with opened(pooler.url(database), lock_timeout_seconds=0.1) as store:
        async with store._transaction("save") as connection:
            assert await connection.fetchval("SHOW lock_timeout") == "100ms"
            assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
            assert await connection.fetchval("SHOW enable_seqscan") == "off"
        async with store._connection("load") as connection:
            assert await connection.fetchval("SHOW lock_timeout") == "0"


async def test_a_held_row_is_revoked_through_it(pooler: PgBouncer, database: str) -> None:
    async with opened(pooler.url(database)) as store:
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        async with store._transaction("save") as holder:
            await holder.execute("SELECT 1 FROM kafka_offset FOR UPDATE")
            with pytest.raises(ContentionError):
                async with store._transaction("save") as connection:
                    await connection.execute("SELECT 1 FROM kafka_offset FOR UPDATE")


async def test_offsets_timers_and_reads_work_through_it(pooler: PgBouncer, database: str) -> None:
    async with opened(pooler.url(database)) as store:
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        batch = Batch([message(at=NOW - 49 * HOUR)], Progress(PLACE, 0, 1))
        await ConversationService(store).consume(batch, asyncio.sleep)

        assert [timer.conversation_id for timer in await store.take_due_timers(10)] == ["c-1"]
        assert len(await store.history("c-1")) == 1
        assert (await store.stored_offsets())[0][1].next_offset == 1
        assert await store.schema_revision() == migrations.head()


@pytest.mark.parametrize("settings", POOLERS)
async def test_migrations_run_through_it(stack: Services, settings: tuple[str, str]) -> None:
    with pooling(stack.postgres, *settings) as pooler:
        async with new_database(stack.postgres, "test") as empty:
            assert await asyncio.to_thread(migrations.upgrade, pooler.url(empty)) == migrations.head()
            assert await asyncio.to_thread(migrations.upgrade, pooler.url(empty)) == migrations.head()


async def test_statement_pooling_is_refused_by_name(database: str) -> None:
    with pooling(database, "statement") as pooler:
        async with opened(pooler.url(database)) as store:
            with pytest.raises(ConfigurationError, match="set PgBouncer's pool_mode to session or transaction"):
                await ConversationService(store).apply([message(at=NOW)])
