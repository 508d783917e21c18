"""Every command on a system on which nothing has run: no database, no topics, no tables, no offsets, no events."""

import secrets
from collections.abc import AsyncIterator

import pytest

from tests.e2e.conftest import Group
from tests.e2e.test_commands import command
from tests.stack.broker import delete
from tests.stack.database import execute
from tests.stack.services import Services

Settings = dict[str, str]


@pytest.fixture
async def nothing(stack: Services) -> AsyncIterator[Settings]:
    """The settings of a system with servers and nothing on them."""
    name = f"new-{secrets.token_hex(6)}"
    yield {
        "CONSUMER_DATABASE__URL": f"{stack.postgres.rpartition('/')[0]}/{name.replace('-', '_')}",
        "CONSUMER_KAFKA__TOPICS": f"{name}.events",
        "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": f"{name}.dead-letter",
        "CONSUMER_KAFKA__TRANSITION_TOPIC": f"{name}.transition",
        "CONSUMER_KAFKA__GROUP_ID": name,
    }
    await execute(stack.postgres, f"DROP DATABASE IF EXISTS {name.replace('-', '_')}")
    await delete(stack.kafka, *(f"{name}.{kind}" for kind in ("events", "dead-letter", "transition")))


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("doctor", 1, "create the database"),
        ("migrate", 2, "create the database"),
        ("migrate status", 2, "create the database"),
        ("run", 2, "conversation-consumer topics"),
        ("ticker", 2, "conversation-consumer topics"),
        ("conversation show c-1", 2, "create the database"),
        ("conversation show c-1 --at 2026-03-01", 2, "create the database"),
        ("conversation why c-1", 2, "create the database"),
        ("conversation rebuild --all", 2, "create the database"),
        ("conversation forget c-1", 2, "create the database"),
        ("offsets show", 2, "create the database"),
        ("dead-letters list", 2, "conversation-consumer topics"),
        ("prune", 2, "create the database"),
        ("what-if --policy idle_after=5m", 2, "create the database"),
        ("what-if --policy idle_after=5m --source topic", 2, "conversation-consumer topics"),
        ("report conversations", 2, "create the database"),
        ("report races", 2, "create the database"),
        ("top 127.0.0.1:1 --rounds 1", 1, "Cannot connect"),
    ],
)
async def test_without_a_database_and_topics_each_command_says_what_to_do(
    group: Group, nothing: Settings, arguments: str, code: int, said: str
) -> None:
    found, out, err = await command(group, *arguments.split(), **nothing)

    assert (found, "Traceback" in err) == (code, False)
    assert said in out + err


async def test_the_doctor_goes_on_after_each_finding_until_all_is_well(
    group: Group, stack: Services, nothing: Settings
) -> None:
    _, empty, _ = await command(group, "doctor", **nothing)
    assert "✗ topics" in empty
    assert "✗ PostgreSQL answers" in empty

    database = nothing["CONSUMER_DATABASE__URL"].rpartition("/")[2]
    await execute(stack.postgres, f"CREATE DATABASE {database}")
    _, without_tables, _ = await command(group, "doctor", **nothing)
    assert "✗ schema: at nothing" in without_tables

    await command(group, "migrate", **nothing)
    await command(group, "topics", "--partitions", "2", **nothing)
    code, well, err = await command(group, "doctor", **nothing)
    assert (code, err) == (0, "")
    assert f"none stored for group {nothing['CONSUMER_KAFKA__GROUP_ID']}: no replica has run yet" in well


@pytest.mark.parametrize(
    "arguments",
    [
        "offsets show",
        "dead-letters list",
        "dead-letters replay",
        "migrate status",
        "report races",
        "report conversations",
        "what-if --policy idle_after=5m",
        "what-if --policy idle_after=5m --source topic",
    ],
)
async def test_before_the_first_event_there_is_nothing_to_show(
    group: Group, stack: Services, nothing: Settings, arguments: str
) -> None:
    await execute(stack.postgres, f"CREATE DATABASE {nothing['CONSUMER_DATABASE__URL'].rpartition('/')[2]}")
    await command(group, "migrate", **nothing)
    await command(group, "topics", "--partitions", "2", **nothing)

    code, out, err = await command(group, *arguments.split(), **nothing)

    assert (code, err) == (0, "")
    assert out


async def test_a_database_newer_than_the_build_is_fine(group: Group, stack: Services, nothing: Settings) -> None:
    url = nothing["CONSUMER_DATABASE__URL"]
    await execute(stack.postgres, f"CREATE DATABASE {url.rpartition('/')[2]}")
    await command(group, "topics", "--partitions", "2", **nothing)
    await command(group, "migrate", **nothing)
    await execute(url, "UPDATE alembic_version SET version_num = '9999'")

    migrated = await command(group, "migrate", **nothing)
    code, findings, _ = await command(group, "doctor", **nothing)

    assert (migrated[0], "schema at 9999, newer than the" in migrated[1]) == (0, True)
    assert (code, "schema: at 9999, newer than the" in findings) == (0, True)


async def test_topics_that_are_not_as_asked_for_are_named(group: Group, nothing: Settings) -> None:
    await command(group, "topics", "--partitions", "3", **nothing)

    same = await command(group, "topics", "--partitions", "3", "--replication", "1", **nothing)
    code, _, err = await command(group, "topics", "--partitions", "2", **nothing)

    assert (same[0], same[2]) == (0, "")
    assert code == 1
    assert f"{nothing['CONSUMER_KAFKA__TOPICS']} has 3 partitions, not 2" in err
