"""The schema: what the migrations make of a database, and what they do about one that they cannot change."""

import asyncio
import os
import sys
from datetime import UTC, datetime

import alembic.command
import pytest

from consumer.errors import ConfigurationError, ConsumerError, UnavailableError
from consumer.lifecycle.model import Event
from consumer.postgres import migrations
from consumer.postgres.outbox import DELETE, OLDEST
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import REQUIRED_REVISION
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, close, message
from tests.conftest import opened
from tests.integration.test_postgres import rows
from tests.stack.database import execute, new_database
from tests.stack.roles import as_owner
from tests.stack.services import Services

NOW = datetime.now(UTC)


async def set_revision(url: str, revision: str) -> None:
    await execute(as_owner(url), f"UPDATE alembic_version SET version_num = '{revision}'")


async def command(url: str, *arguments: str) -> tuple[int | None, str, str]:
    """The exit code of a command of `conversation-consumer`, its output and its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer", *arguments),
        env={**os.environ, "CONSUMER_DATABASE__URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def migrated(url: str) -> str:
    return await asyncio.to_thread(migrations.upgrade, url)


class TestSchema:
    def test_the_migrations_end_in_the_tables_of_the_code(self, template: str) -> None:
        migrations.check(template)

    async def test_migrating_again_changes_nothing(self, store: PostgresStore, database: str) -> None:
        await ConversationService(store).apply([message(at=NOW)])

        assert await asyncio.to_thread(migrations.upgrade, database) == migrations.head()

        assert (await store.conversation("c-1"))[1] == 1

    def test_the_statements_can_be_printed_for_an_administrator(self) -> None:
        assert "CREATE TABLE conversation_event" in migrations.upgrade_sql()

    async def test_the_newest_revision_is_enough_for_this_build(self, store: PostgresStore) -> None:
        assert await store.schema_revision() == migrations.head() >= REQUIRED_REVISION

    async def test_the_build_writes_on_the_oldest_schema_that_it_accepts(self, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            await asyncio.to_thread(alembic.command.upgrade, migrations._config(empty), REQUIRED_REVISION)
            async with opened(empty) as store:
                await ConversationService(store).apply(
                    [message(at=NOW - HOUR), close(at=NOW), message(at=NOW + MINUTE)]
                )

                async with store.turn(10, 1) as batch:
                    assert batch is not None
                    assert len(batch.rows) == 3

    @pytest.mark.parametrize("sql", [OLDEST.replace("$1", "10"), DELETE.replace("$1", "'{1,2}'")])
    async def test_the_outbox_is_read_and_emptied_by_its_key(self, store: PostgresStore, sql: str) -> None:
        async with store._connection("load") as connection:
            plan = await connection.fetch(f"EXPLAIN {sql}")

        assert "transition_outbox_pkey" in "\n".join(line for (line,) in plan)

    async def test_the_view_has_all_sessions(self, store: PostgresStore, database: str) -> None:
        events: list[Event] = [message(at=NOW - HOUR), close(at=NOW - MINUTE), message(at=NOW)]
        await ConversationService(store).apply(events)

        found = await rows(database, "SELECT session, status FROM conversation_session ORDER BY session")

        assert found == [(1, "agent_closed"), (2, "pending")]

    async def test_ids_sort_by_byte(self, store: PostgresStore, database: str) -> None:
        await ConversationService(store).apply([message(at=NOW, conversation_id=key) for key in ("b", "A", "a", "B")])

        found = await rows(database, "SELECT conversation_id FROM conversation ORDER BY 1")

        assert [key for (key,) in found] == ["A", "B", "a", "b"]


class TestNewerDatabase:
    @pytest.mark.parametrize("revision", [f"{int(migrations.head()) + 1:04}", "0999", "12345"])
    async def test_nothing_is_done_to_it(self, database: str, revision: str) -> None:
        await set_revision(database, revision)

        assert await migrated(database) == revision

        assert await rows(database, "SELECT version_num FROM alembic_version") == [(revision,)]

    async def test_the_commands_say_that_it_is_newer(self, database: str) -> None:
        await set_revision(database, "0999")

        code, out, _ = await command(database, "migrate")
        status, report, _ = await command(database, "migrate", "status")

        newest = migrations.head()
        assert (code, out) == (0, f"schema at 0999, newer than the {newest} of this build: nothing to do\n")
        assert (status, report.startswith(f"database 0999, this build {newest}")) == (0, True)

    async def test_a_database_of_another_program_is_refused(self, database: str) -> None:
        await set_revision(database, "ae1027a6acf")

        with pytest.raises(ConfigurationError, match="ae1027a6acf, which is no revision of conversation-consumer"):
            await migrated(database)


class TestFailingMigration:
    async def test_it_is_one_line_that_says_which_and_why_and_nothing_is_changed(self, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            await execute(empty, "CREATE VIEW race_report AS SELECT 1 AS mine")

            with pytest.raises(ConsumerError) as caught:
                await migrated(empty)

            assert str(caught.value) == (
                'migration 0002 failed, nothing was changed: relation "race_report" already exists (SQLSTATE 42P07)'
            )
            assert await rows(empty, "SELECT to_regclass('conversation'), to_regclass('alembic_version')") == [
                (None, None)
            ]

    async def test_the_command_prints_one_line_and_no_traceback(self, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            await execute(empty, "CREATE TABLE kafka_offset (mine int)")

            code, out, err = await command(empty, "migrate")

        assert (code, out, err.count("\n")) == (1, "", 1)
        assert "migration 0001 failed, nothing was changed" in err

    async def test_a_user_who_may_not_change_the_schema_is_a_wrong_setting(self, database: str) -> None:
        await set_revision(database, "0003")
        await execute(as_owner(database), "DROP TYPE conversation_version, event_identity, conversation_write")

        with pytest.raises(ConfigurationError, match=r"migration 0004 failed, nothing was changed: .* denied"):
            await migrated(database)

    async def test_a_database_that_is_away_is_an_outage(self) -> None:
        with pytest.raises(UnavailableError, match="CONSUMER_DATABASE__URL"):
            await migrated("postgresql://nobody@127.0.0.1:1/none")
