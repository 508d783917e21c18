"""What a caller gets when the database fails in the middle of its work, and that the work goes on afterwards."""

from datetime import UTC, datetime

import pytest

from consumer.errors import RefusedError, TooSlowError, UnavailableError
from consumer.lifecycle.model import Author, Outcome
from consumer.observability.metrics import Metrics
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.builders import close, message
from tests.conftest import opened
from tests.integration.test_postgres import LOCK_C1, apply, outsider
from tests.races import counted
from tests.stack.database import execute
from tests.stack.roles import as_owner

NOW = datetime.now(UTC)
KILL_OTHERS = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid()"""


class TestOutages:
    async def test_a_database_that_is_not_there_is_unavailable(self) -> None:
        async with opened("postgresql://nobody@127.0.0.1:1/none") as store:
            with pytest.raises(UnavailableError):
                await apply(store, message(at=NOW))
            assert not await store.answers()

    async def test_a_killed_backend_is_unavailable_once(self, store: PostgresStore, database: str) -> None:
        await apply(store, message(at=NOW))
        await execute(database, KILL_OTHERS)

        with pytest.raises(UnavailableError):
            await apply(store, message(at=NOW))

        assert await apply(store, message(at=NOW)) == [Outcome.APPLIED]

    async def test_a_failed_save_is_counted_as_an_error(self, store: PostgresStore, database: str) -> None:
        metrics = Metrics()
        await execute(as_owner(database), "ALTER TABLE conversation_event ADD CHECK (actor <> 'agent')")

        with pytest.raises(RefusedError):
            await ConversationService(store, metrics=metrics).apply([message(Author.AGENT, NOW)])

        assert counted(metrics, "conversation_write_attempts_total", result="error") == 1

    async def test_the_pools_gauge_survives_an_outage(self, store: PostgresStore, database: str) -> None:
        metrics = Metrics()
        async with opened(database, metrics) as watched:
            await apply(watched, message(at=NOW))
            await execute(database, KILL_OTHERS)
            with pytest.raises(UnavailableError):
                await apply(watched, message(at=NOW))
            await apply(watched, message(at=NOW))

            assert counted(metrics, "conversation_db_pool_connections", state="idle") == 1
            assert counted(metrics, "conversation_db_pool_connections", state="in_use") == 0
            assert counted(metrics, "conversation_db_pool_connections", state="unopened") == DatabaseSettings().writers

    async def test_an_error_does_not_quote_what_was_written(self, store: PostgresStore, database: str) -> None:
        await execute(as_owner(database), "ALTER TABLE conversation_event ADD COLUMN tenant text NOT NULL")

        with pytest.raises(Exception, match="tenant") as caught:
            await apply(store, close(at=NOW, reason="canary-4711"))

        assert "canary-4711" not in str(caught.value)

    async def test_a_statement_that_takes_too_long_differs_from_a_lost_connection(self, database: str) -> None:
        async with opened(database, statement_timeout_seconds=0.2, lock_timeout_seconds=5) as store:
            await apply(store, message(at=NOW))
            async with outsider(database, LOCK_C1):
                with pytest.raises(TooSlowError):
                    await apply(store, message(at=NOW))
