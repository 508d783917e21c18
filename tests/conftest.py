"""Real services for the whole run, a database and topics of its own for each test."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import hypothesis
import pytest

from consumer.observability.metrics import Metrics
from consumer.postgres.store import PostgresStore
from consumer.settings import DatabaseSettings
from tests.stack.broker import is_apache_kafka
from tests.stack.database import earlier, execute, migrate, new_database
from tests.stack.programs import missing
from tests.stack.roles import as_owner, copy_for_app, new_roles, set_up_roles, with_role
from tests.stack.services import Services, services

hypothesis.settings.register_profile("default", deadline=None, max_examples=200, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
used_services = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def stack(pytestconfig: pytest.Config) -> Iterator[Services]:
    with services() as found:
        if os.environ.get("REQUIRE_KAFKA") == "1" and not asyncio.run(is_apache_kafka(found.kafka)):
            pytest.exit(f"REQUIRE_KAFKA=1, but {found.kafka} is not Apache Kafka", returncode=1)
        pytestconfig.stash[used_services] = found.origin
        yield found


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test without the program that it needs fails where it must run, and is named elsewhere."""
    for marker in item.iter_markers("needs"):
        if why := missing(*marker.args):
            (pytest.fail if "CI" in os.environ else pytest.skip)(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"services: {config.stash.get(used_services, 'none were needed')}")


@pytest.fixture(scope="session")
def template(stack: Services) -> Iterator[str]:
    """The owner's URL of a database that the shipped roles and migrations made; tests get copies of it."""
    with asyncio.Runner() as runner:
        made = _migrated_database(stack.postgres)
        yield runner.run(made.__aenter__())
        runner.run(made.__aexit__(None, None, None))


@asynccontextmanager
async def _migrated_database(server: str) -> AsyncIterator[str]:
    async with new_roles(server) as prefix, new_database(server, "test_template") as url:
        await set_up_roles(url, prefix)
        owner = with_role(url, f"{prefix}_owner")
        await migrate(owner)
        yield owner


@pytest.fixture
async def database(stack: Services, template: str) -> AsyncIterator[str]:
    """The URL of an empty database at the newest schema, as the role that may change rows and nothing else."""
    async with copy_for_app(stack.postgres, template) as url:
        yield url


@asynccontextmanager
async def opened(url: str, metrics: Metrics | None = None, **settings: float) -> AsyncIterator[PostgresStore]:
    async with PostgresStore.open(DatabaseSettings(url=url, **settings), metrics) as store:
        yield store


async def aged(url: str, days: float) -> None:
    """All history up to now was recorded so many days earlier."""
    await execute(url, f"UPDATE conversation_event SET {earlier('recorded_at', f'{days} days')}")
    await execute(as_owner(url), "VACUUM FULL conversation_event")


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    async with opened(database) as opened_store:
        yield opened_store
