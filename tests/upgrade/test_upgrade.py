"""An old build and today's on one group and one database, in every order that an operator's day may bring."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import alembic.command
import asyncpg
import pytest

from consumer.decoding import encoded
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import Author
from consumer.postgres import migrations
from consumer.postgres.tables import REQUIRED_REVISION
from consumer.service.service import ConversationService
from tests.builders import close, message
from tests.conftest import opened
from tests.demo.environment import Environment, unmigrated
from tests.stack.process import DevstackError
from tests.stack.services import Services
from tests.traffic import SHORT_POLICY
from tests.upgrade.build import MIGRATIONS, Build, find_commit, new_build
from tests.upgrade.check import check
from tests.upgrade.judge import longest_pause
from tests.upgrade.rollout import Plan, Step

NOW = datetime.now(UTC)
OUTBOX = "SELECT version, to_status, recorded_at IS NOT NULL FROM transition_outbox ORDER BY id"


@pytest.fixture
async def environment(stack: Services) -> AsyncIterator[Environment]:
    async with unmigrated(stack, "upgrade") as made:
        yield made


async def test_an_upgrade_and_a_rollback_under_load_lose_nothing(stack: Services, old: Build) -> None:
    plan = Plan(replicas=2, events_per_second=150, hold_seconds=0.3, forward_again=False)

    result = await check(stack, old, new_build(), plan)

    assert [verdict for verdict in result.verdicts if not verdict.holds] == []
    assert all(measured.applied for measured in result.measured)


async def test_an_old_replica_goes_on_with_what_the_new_build_wrote(environment: Environment, old: Build) -> None:
    await asyncio.to_thread(migrations.upgrade, environment.database)
    at = [NOW + timedelta(seconds=number / 10) for number in range(3)]
    async with opened(environment.database) as store:
        service = ConversationService(store, policy=SHORT_POLICY.policy)
        await service.apply([message(at=at[0]), message(Author.AGENT, at[1])])
    replica = await old.replica("run", environment.settings, environment.logs / "old.log").start()

    async with KafkaProducer.open(environment.kafka) as producer:
        await producer.publish(environment.topic, [encoded(close(at=at[2]))])
    await environment.until_applied(1)

    assert await replica.stop() == 0
    connection = await asyncpg.connect(environment.database)
    assert [tuple(row) for row in await connection.fetch(OUTBOX)] == [
        (1, "pending", True),
        (2, "progress", True),
        (3, "agent_closed", True),
    ]
    await connection.close()


@pytest.mark.parametrize("command", ["run", "ticker", "outbox"])
async def test_on_a_schema_that_is_too_old_a_build_says_what_to_run(environment: Environment, command: str) -> None:
    before = f"{int(REQUIRED_REVISION) - 1:04}"
    await asyncio.to_thread(alembic.command.upgrade, migrations._config(environment.database), before)

    code, out = await new_build().run(environment.settings, command)

    assert code == 2
    assert f"schema is at {before}, this build needs {REQUIRED_REVISION}: run `conversation-consumer migrate`" in out


async def test_the_migrate_of_the_old_build_leaves_a_newer_schema_alone(environment: Environment, old: Build) -> None:
    await asyncio.to_thread(migrations.upgrade, environment.database)

    code, out = await old.run(environment.settings, "migrate")

    assert (code, out.startswith(f"schema at {migrations.head()}, newer than the ")) == (0, True)


class TestOldBuild:
    def test_it_is_the_last_commit_before_the_newest_migration(self, tmp_path: Path) -> None:
        before = commit(tmp_path, "0001_first.py")
        commit(tmp_path, "0002_second.py")
        commit(tmp_path, "readme.md")

        assert find_commit(None, tmp_path) == before

    def test_before_the_newest_migration_is_committed_it_is_the_last_commit(self, tmp_path: Path) -> None:
        before = commit(tmp_path, "0001_first.py")
        (tmp_path / MIGRATIONS / "0002_second.py").touch()

        assert find_commit(None, tmp_path) == before

    def test_it_can_be_named(self, tmp_path: Path) -> None:
        named = commit(tmp_path, "0001_first.py")
        commit(tmp_path, "0002_second.py")

        assert find_commit(named[:10], tmp_path) == named

    def test_a_copy_without_history_is_one_line_that_says_what_is_needed(self, tmp_path: Path) -> None:
        commit(tmp_path, "0001_first.py")

        with pytest.raises(DevstackError, match=r"clone it with its history \(`git fetch --unshallow`\)[^\n]*\Z"):
            find_commit(None, tmp_path)

    def test_so_is_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / MIGRATIONS).mkdir(parents=True)
        (tmp_path / MIGRATIONS / "0001_first.py").touch()

        with pytest.raises(DevstackError, match="clone it with its history"):
            find_commit(None, tmp_path)

    def test_an_unknown_name_is_refused(self, tmp_path: Path) -> None:
        commit(tmp_path, "0001_first.py")

        with pytest.raises(DevstackError, match="OLD=v9 is no commit"):
            find_commit("v9", tmp_path)


def test_a_pause_belongs_to_the_step_in_which_it_begins() -> None:
    times = [NOW + timedelta(seconds=second) for second in (0, 1, 2, 5, 6, 20)]

    first = longest_pause(Step("first", times[0], times[3]), times)
    second = longest_pause(Step("second", times[3], times[4]), times)

    assert (first, second) == (timedelta(seconds=3), timedelta(seconds=1))


def commit(root: Path, name: str) -> str:
    """Adds a file to a repository, which may be new; the commit."""
    path = root / MIGRATIONS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    git = ("git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@example.org")
    for arguments in (("init", "-q"), ("add", "."), ("commit", "-qm", name)):
        subprocess.run([*git, *arguments], check=True)
    return subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
