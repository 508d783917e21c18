"""The three roles of `deploy/postgres/roles.sql`: the owner migrates, the app writes rows, the reader reads."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import asyncpg
import pytest

from consumer.lifecycle.model import Outcome
from consumer.postgres import migrations
from consumer.postgres.tables import metadata
from consumer.service.service import ConversationService
from tests.builders import message
from tests.conftest import opened
from tests.integration.test_postgres import rows
from tests.stack.database import execute, new_database
from tests.stack.roles import SCRIPT, as_owner, as_reader, new_roles, set_up_roles, with_role
from tests.stack.services import Services

NOW = datetime.now(UTC)
TABLES = sorted(metadata.tables)
VIEWS = ("conversation_session", "conversation_report", "race_report")


class TestApp:
    @pytest.mark.parametrize(
        "statement",
        [
            "CREATE TABLE mine (id int)",
            "CREATE TEMPORARY TABLE mine (id int)",
            "CREATE SCHEMA mine",
            "ALTER TABLE conversation ADD COLUMN mine int",
            "CREATE INDEX mine ON conversation (status)",
            "CREATE TRIGGER mine BEFORE UPDATE ON conversation EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "TRUNCATE conversation_event",
            "DROP TABLE conversation_event",
            "UPDATE alembic_version SET version_num = '9999'",
            "DELETE FROM alembic_version",
        ],
    )
    async def test_it_changes_neither_the_schema_nor_its_revision(self, database: str, statement: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(database, statement)

    async def test_it_is_not_the_owner_under_another_name(self, database: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(database, f"SET ROLE {as_owner(database).split('//')[1].split(':')[0]}")


class TestReader:
    @pytest.mark.parametrize("relation", [*TABLES, *VIEWS])
    async def test_it_reads_tables_and_reports(self, database: str, relation: str) -> None:
        async with opened(database) as store:
            await ConversationService(store).apply([message(at=NOW)])

        assert await rows(as_reader(database), f"SELECT count(*) >= 0 FROM {relation}") == [(True,)]

    @pytest.mark.parametrize("table", TABLES)
    @pytest.mark.parametrize("verb", ["DELETE FROM {}", "TRUNCATE {}", "INSERT INTO {} DEFAULT VALUES"])
    async def test_it_writes_nothing(self, database: str, table: str, verb: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(as_reader(database), verb.format(table))

    async def test_it_locks_no_row_that_a_writer_needs(self, database: str) -> None:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await execute(as_reader(database), "SELECT 1 FROM conversation WHERE conversation_id = 'c-1' FOR UPDATE")


async def test_tables_of_later_migrations_are_covered(database: str) -> None:
    await execute(as_owner(database), "CREATE TABLE later (id bigint GENERATED ALWAYS AS IDENTITY, name text)")
    await execute(as_owner(database), "CREATE VIEW later_report AS SELECT name FROM later")

    await execute(database, "INSERT INTO later (name) VALUES ('a'); UPDATE later SET name = 'b'")

    assert await rows(as_reader(database), "SELECT name FROM later_report") == [("b",)]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(as_reader(database), "DELETE FROM later")


@pytest.fixture
async def roles(stack: Services) -> AsyncIterator[str]:
    async with new_roles(stack.postgres) as prefix:
        yield prefix


async def works(url: str, prefix: str) -> bool:
    """Whether the owner migrates, the app writes and the reader reads."""
    assert await asyncio.to_thread(migrations.upgrade, with_role(url, f"{prefix}_owner")) == migrations.head()
    async with opened(with_role(url, f"{prefix}_app")) as store:
        written = await ConversationService(store).apply([message(at=NOW, event_id=secrets.token_hex(8))])
    read = await rows(with_role(url, f"{prefix}_reader"), "SELECT count(*) > 0 FROM conversation_report")
    return (written, read) == ([Outcome.APPLIED], [(True,)])


async def test_the_script_runs_again_without_an_effect(stack: Services, roles: str) -> None:
    async with new_database(stack.postgres, "test") as url:
        await set_up_roles(url, roles)
        assert await works(url, roles)
        before = await privileges(url)

        await set_up_roles(url, roles)

        assert await privileges(url) == before
        assert await works(url, roles)


async def privileges(url: str) -> list[tuple[object, ...]]:
    return await rows(
        url,
        "SELECT relname::text, pg_get_userbyid(relowner)::text, relacl::text FROM pg_class "
        "WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
    )


async def test_what_another_user_has_migrated_becomes_the_owners(stack: Services, roles: str) -> None:
    async with new_database(stack.postgres, "test") as url:
        await asyncio.to_thread(migrations.upgrade, url)

        await set_up_roles(url, roles)

        await execute(with_role(url, f"{roles}_owner"), "ALTER TABLE conversation ADD COLUMN later int")
        await execute(with_role(url, f"{roles}_owner"), "DROP TYPE event_identity CASCADE; DROP VIEW race_report")


@pytest.fixture
async def stranger(stack: Services) -> AsyncIterator[str]:
    """A user without any privilege. Lasts longer than `roles`."""
    name = f"test_{secrets.token_hex(6)}_stranger"
    await execute(stack.postgres, f"CREATE ROLE {name} LOGIN PASSWORD '{name.rpartition('_')[0]}'")
    yield name
    await execute(stack.postgres, f"DROP ROLE {name}")


async def test_an_administrator_who_is_no_superuser_can_run_it(stack: Services, stranger: str, roles: str) -> None:
    async with new_database(stack.postgres, "test") as url:
        await execute(url, f"ALTER ROLE {stranger} CREATEDB CREATEROLE")
        await execute(url, f"ALTER DATABASE {url.rpartition('/')[2]} OWNER TO {stranger}")

        await set_up_roles(with_role(url, stranger), roles)

        assert await works(url, roles)


async def test_nobody_else_connects(stack: Services, stranger: str, roles: str) -> None:
    async with new_database(stack.postgres, "test") as url:
        await set_up_roles(url, roles)

        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await asyncpg.connect(with_role(url, stranger))


def test_the_script_has_no_password() -> None:
    statements = [line for line in SCRIPT.read_text().splitlines() if not line.startswith("--")]

    assert "password" not in "\n".join(statements).lower()
