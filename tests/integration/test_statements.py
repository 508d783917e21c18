"""What a batch costs in statements: the same for one event as for thousands."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from consumer.lifecycle.model import Event
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.postgres import attempt as statements
from consumer.postgres import few
from consumer.postgres.client import StoreConnection
from consumer.postgres.store import PostgresStore
from consumer.service.batch import Batch
from consumer.service.cache import ConversationCache
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, close, message
from tests.stack.citus import workers_of
from tests.stack.services import Services

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)
READING = "read versions and known ids"
NAMES = {
    statements.ADVANCE_OFFSET: "advance offset",
    statements.READ_VERSIONS_AND_KNOWN_IDS: READING,
    statements.LOAD: "load",
    statements.UPDATE: "update",
    statements.INSERT: "insert",
    statements.ARCHIVE: "archive",
    few.WRITE_AND_ADVANCE: "write and advance",
}


@pytest.fixture(autouse=True)
async def one_server(stack: Services) -> None:
    if await workers_of(stack.postgres):
        pytest.skip("on a Citus cluster a batch takes others")


class Recording(StoreConnection):
    """Records its statements."""

    statements: list[str]

    async def execute(self, query: str, *arguments: Any, **options: Any) -> Any:
        self.statements.append(NAMES.get(query, query.rstrip(";")))
        return await super().execute(query, *arguments, **options)

    async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
        self.statements.append(NAMES.get(query, query))
        return await super().fetch(query, *arguments, **options)

    async def copy_records_to_table(self, table_name: str, **options: Any) -> Any:
        self.statements.append(f"copy {table_name}")
        return await super().copy_records_to_table(table_name, **options)


@asynccontextmanager
async def recorded(database: str) -> AsyncIterator[tuple[PostgresStore, list[str]]]:
    Recording.statements = []
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(database, connection_class=Recording),
        isolation_level="AUTOCOMMIT",
    )
    try:
        yield PostgresStore(engine), Recording.statements
    finally:
        await engine.dispose()


async def statements_of(database: str, *batches: Sequence[Event], cached: int = 1000) -> list[str]:
    """Those of the last of the batches, which follow each other as in the log."""
    async with recorded(database) as (store, recorded_statements):
        await store.create_offset(PLACE, StoredOffset("cluster", 0))
        service, cache, mark, start = ConversationService(store), ConversationCache(cached), 0, 0
        for events in batches:
            batch = Batch(events, Progress(PLACE, start, start + len(events), mark), cache=cache)
            recorded_statements.clear()
            await service.consume(batch, asyncio.sleep)
            assert batch.progress is not None
            start, mark = batch.progress.end, batch.progress.mark
        return list(recorded_statements)


def messages(count: int, at: datetime) -> Sequence[Event]:
    return [message(at=at, conversation_id=f"c-{number % 300}") for number in range(count)]


@pytest.mark.parametrize("count", [1, PostgresStore.few])
async def test_few_messages_take_two_statements(database: str, count: int) -> None:
    executed = await statements_of(database, messages(count, NOW - MINUTE), messages(count, NOW))

    assert executed == [READING, "write and advance"]


async def test_few_events_that_change_nothing_take_two_statements(database: str) -> None:
    again = messages(1, NOW)

    executed = await statements_of(database, again, again)

    assert executed == [READING, "advance offset"]


@pytest.mark.parametrize("count", [PostgresStore.few + 1, 3000])
async def test_a_batch_of_messages_takes_six_statements(database: str, count: int) -> None:
    executed = await statements_of(database, messages(count, NOW - MINUTE), messages(count, NOW))

    assert executed == ["BEGIN", "advance offset", READING, "update", "copy conversation_event", "COMMIT"]


@pytest.mark.parametrize("count", [PostgresStore.few + 1, 3000])
@pytest.mark.parametrize(("cached", "reading"), [(6000, [READING]), (0, [READING, "load", READING])])
async def test_a_first_attempt_takes_eleven_statements_at_most(
    database: str, count: int, cached: int, reading: list[str]
) -> None:
    old: Iterable[Event] = (close(at=NOW - HOUR, conversation_id=f"c-{number}") for number in range(count))
    new: Iterable[Event] = (message(at=NOW, conversation_id=f"new-{number}") for number in range(count))

    executed = await statements_of(database, [*old], [*messages(count, NOW), *new], cached=cached)

    writing = ["update", "insert", "archive", "copy conversation_event", "copy transition_outbox"]
    assert executed == ["BEGIN", "advance offset", *reading, *writing, "COMMIT"]
