"""On a Citus cluster, where `DEVSTACK_POSTGRES` names its coordinator; what a server without Citus says everywhere."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from consumer.commands.doctor import _distribution
from consumer.errors import ConfigurationError, UnavailableError
from consumer.lifecycle.model import Author, Event
from consumer.postgres import attempt, citus, conversations, histories, migrations, outbox, pruning, repair, timers
from consumer.postgres.client import connected as connected_as_store
from consumer.postgres.client import set_for_transaction
from consumer.postgres.distribution import administering, distribute, make_plan, read_layout
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import CONVERSATION_TABLES
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.builders import HOUR, MINUTE, close, message
from tests.conftest import opened
from tests.integration.test_pgbouncer import pooling
from tests.integration.test_postgres import rows
from tests.stack.citus import with_path, workers_of
from tests.stack.database import connected, execute, new_database
from tests.stack.roles import as_owner
from tests.stack.services import Services

NOW = datetime.now(UTC)
MANY = [f"c-{number}" for number in range(100)]
DOCUMENT = Path(__file__).parents[2] / "docs" / "citus.md"
ROW = (0, "c-1", 1, 1, "pending", NOW, None, None, NOW, NOW, None, 1, 0, None, NOW, None, None, None, None)
WRITTEN = [(*ROW[:1], key, *ROW[2:]) for key in MANY]
STATEMENTS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "move the offset": (attempt.ADVANCE_OFFSET, ("g", "t", 0, 0, 0, 1, 1)),
    "changed versions": (citus.CHANGED, ([(key, 1) for key in MANY],)),
    "known ids": (citus.KNOWN, ([(key, "s", "e") for key in MANY],)),
    "load": (attempt.LOAD, (MANY,)),
    "load the archive": (attempt.LOAD_ARCHIVE, (MANY,)),
    "lock, by shard": (attempt.LOCK, (MANY[:1],)),
    "update": (attempt.UPDATE, (WRITTEN,)),
    "insert": (attempt.INSERT, (WRITTEN,)),
    "archive": (attempt.ARCHIVE, (WRITTEN,)),
    "due timers": (citus._DUE, (10, NOW, None)),
    "lock due timers, by shard": (timers._LOCK_DUE, (MANY[:1], NOW)),
    "rearm timers": (citus._REARM, (MANY, [NOW] * len(MANY))),
    "overdue timers": (citus.OVERDUE, (NOW, [NOW] * 900)),
    "oldest transitions": (outbox.OLDEST, (10,)),
    "delete transitions": (outbox.DELETE, ([1, 2, 3],)),
    "count transitions": (outbox.BACKLOG, (10,)),
    "prune": (pruning._PRUNE, ((0, 0), (5, 0), NOW)),
    "history of a conversation": (conversations.HISTORY, ("c-1",)),
    "forget a conversation": (repair._DELETE, ("c-1",)),
    "scan histories": (histories._SCAN, (MANY, NOW, NOW)),
}


@pytest.fixture
async def coordinator(stack: Services) -> str:
    if not await workers_of(stack.postgres):
        pytest.skip("DEVSTACK_POSTGRES names no coordinator of a Citus cluster")
    return stack.postgres


@pytest.fixture
async def undistributed(coordinator: str) -> AsyncIterator[str]:
    async with new_database(coordinator, "test") as url:
        await asyncio.to_thread(migrations.upgrade, url)
        yield url


def events() -> list[Event]:
    return [
        event
        for key in MANY
        for event in (
            message(at=NOW - HOUR, conversation_id=key),
            close(at=NOW - MINUTE, conversation_id=key),
            message(Author.AGENT, NOW, conversation_id=key, event_id="next"),
        )
    ]


async def distributed(url: str) -> list[str]:
    async with administering(url) as connection:
        return [table async for table in distribute(connection, await make_plan(connection, None))]


@asynccontextmanager
async def as_store(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connected_as_store(DatabaseSettings(url=url))
    try:
        async with connection.transaction():
            await set_for_transaction(connection)
            yield connection
    finally:
        await connection.close()


async def test_a_server_without_citus_says_what_to_install(stack: Services) -> None:
    if await workers_of(stack.postgres):
        pytest.skip("DEVSTACK_POSTGRES names a coordinator of a Citus cluster")
    async with new_database(stack.postgres, "test") as url, administering(url) as connection:
        with pytest.raises(ConfigurationError, match="no extension citus: run CREATE EXTENSION citus"):
            await make_plan(connection, None)

        assert await read_layout(connection) is None


class TestDistribution:
    async def test_a_cluster_without_workers_says_what_to_add(self, undistributed: str) -> None:
        async with administering(undistributed) as connection:
            await connection.execute("SELECT citus_remove_node(nodename, nodeport) FROM pg_dist_node WHERE groupid > 0")

            with pytest.raises(ConfigurationError, match=r"no node may hold shards: .* citus_add_node"):
                await make_plan(connection, None)

    async def test_a_schema_that_is_too_old_is_refused(self, coordinator: str) -> None:
        async with new_database(coordinator, "test") as url, administering(url) as connection:
            with pytest.raises(ConfigurationError, match=r"schema at nothing, .* run `conversation-consumer migrate`"):
                await make_plan(connection, None)

    @pytest.mark.needs("pgbouncer")
    async def test_it_is_done_through_a_pooler(self, coordinator: str, undistributed: str) -> None:
        async with opened(undistributed) as store:
            await ConversationService(store).apply(events())

        with pooling(coordinator, "transaction") as pooler:
            done = [await distributed(pooler.url(undistributed)) for _ in range(3)]

        assert done == [list(CONVERSATION_TABLES), [], []]

    async def test_filled_tables_keep_their_rows(self, undistributed: str) -> None:
        async with opened(undistributed) as store:
            await ConversationService(store).apply(events())
            before = await store.stored(MANY)

        assert await distributed(undistributed) == list(CONVERSATION_TABLES)

        async with opened(undistributed) as store:
            after = await store.stored(MANY)
            assert [(one.row, one.archive, one.history) for one in after] == [
                (one.row, one.archive, one.history) for one in before
            ]
            await ConversationService(store).apply([close(at=NOW + MINUTE, conversation_id=key) for key in MANY])
            assert (await store.conversation("c-7"))[1] == 4

    async def test_it_can_be_run_again(self, undistributed: str) -> None:
        await distributed(undistributed)

        assert await distributed(undistributed) == []

    async def test_workers_know_the_types_of_parameters(self, undistributed: str) -> None:
        await distributed(undistributed)

        for worker in await workers_of(undistributed):
            types = "SELECT count(*) FROM pg_type WHERE typname IN ('conversation_write', 'event_identity')"
            assert await rows(worker, types) == [(2,)]

    async def test_an_open_store_goes_on(self, undistributed: str) -> None:
        async with opened(undistributed) as store:
            service = ConversationService(store)
            await service.apply([message(at=NOW - MINUTE)])
            await distributed(undistributed)

            await through_outages(service, message(at=NOW, event_id="after"))

            assert (await store.conversation("c-1"))[1] == 2


async def through_outages(service: ConversationService, event: Event) -> None:
    for _ in range(20):
        try:
            await service.apply([event])
        except UnavailableError:
            continue
        return
    pytest.fail("an outage without end")


class TestLayout:
    async def test_nothing_is_missing_once_it_is_distributed(self, coordinator: str, store: PostgresStore) -> None:
        layout = await store.layout()

        assert layout is not None
        assert (layout.missing, layout.apart, layout.inactive) == ([], [], [])
        assert _distribution(layout).remedy == ""

    async def test_tables_that_are_not_distributed_are_named(self, undistributed: str) -> None:
        async with opened(undistributed) as store:
            layout = await store.layout()

        assert layout is not None
        finding = _distribution(layout)
        assert finding.seen == f"not distributed by conversation_id: {', '.join(CONVERSATION_TABLES)}"
        assert finding.remedy == "run `conversation-consumer migrate citus`"

    async def test_a_table_that_lies_apart_is_named(self, undistributed: str) -> None:
        for table in CONVERSATION_TABLES:
            await execute(
                undistributed, f"SELECT create_distributed_table('{table}', 'conversation_id', colocate_with => 'none')"
            )

        async with opened(undistributed) as store:
            layout = await store.layout()

        assert layout is not None
        assert (
            _distribution(layout).seen == f"not with their conversations: {', '.join(sorted(CONVERSATION_TABLES[1:]))}"
        )


class TestWork:
    async def test_timers_of_locked_rows_are_left_for_later(
        self, coordinator: str, store: PostgresStore, database: str
    ) -> None:
        await ConversationService(store).apply([message(at=NOW - HOUR, conversation_id=key) for key in MANY[:10]])
        await execute(database, "UPDATE conversation SET wake_at = '2020-01-01'")

        async with connected(database) as other, other.transaction():
            await other.execute("SELECT 1 FROM conversation WHERE conversation_id = 'c-3' FOR UPDATE")
            taken = await store.take_due_timers(100)

        assert sorted(timer.conversation_id for timer in taken) == sorted(set(MANY[:10]) - {"c-3"})
        assert [timer.conversation_id for timer in await store.take_due_timers(100)] == ["c-3"]

    async def test_history_is_pruned_on_every_shard(
        self, coordinator: str, store: PostgresStore, database: str
    ) -> None:
        await ConversationService(store).apply(events())
        await execute(as_owner(database), "UPDATE conversation_event SET recorded_at = '2020-01-01'")
        pages, _ = await store.history_size()

        assert await store.prune(range(pages), NOW) == 300

        assert await rows(database, "SELECT count(*) FROM conversation_event") == [(0,)]

    async def test_who_holds_a_row_is_found(self, coordinator: str, store: PostgresStore, database: str) -> None:
        await ConversationService(store).apply([message(at=NOW)])

        async with connected(database) as other, other.transaction():
            await other.execute("SELECT 1 FROM conversation WHERE conversation_id = 'c-1' FOR UPDATE")
            holder = await store.lock_holder("c-1")

        assert holder is not None
        assert await store.lock_holder("c-1") is None


class TestReadiness:
    async def test_the_database_does_not_answer_while_a_worker_is_away(
        self, coordinator: str, store: PostgresStore, database: str
    ) -> None:
        nodes = with_path(coordinator, urlsplit(database).path[1:])
        assert await store.answers()

        await execute(
            nodes, "UPDATE pg_dist_node SET nodeport = 1 WHERE groupid = (SELECT max(groupid) FROM pg_dist_node)"
        )

        assert not await store.answers()


class TestStatements:
    async def test_each_runs_as_the_document_says(self, coordinator: str, store: PostgresStore, database: str) -> None:
        found = {}
        for name, (sql, parameters) in STATEMENTS.items():
            async with as_store(database) as connection:
                plan = await connection.fetch(f"EXPLAIN (COSTS OFF) {sql}", *parameters)
                found[name] = kind([line for (line,) in plan])

        assert found == documented()


def kind(plan: Sequence[str]) -> str:
    """How a coordinator has it done."""
    text = "\n".join(plan)
    tasks = [int(count) for count in re.findall(r"Task Count: (\d+)", text)]
    if "Citus INSERT ... SELECT" in text:
        return "multi-shard, rows by way of the coordinator"
    if "Distributed Subplan" in text:
        return "multi-shard, in steps"
    if not tasks:
        return "coordinator"
    return "router" if tasks == [1] else "multi-shard"


def documented() -> dict[str, str]:
    cells = re.findall(r"^\| ([a-z][^|]*) \| ([^|]*) \| `[^|]*` \|$", DOCUMENT.read_text(), re.MULTILINE)
    return dict(cells)
