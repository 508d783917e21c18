"""`conversation show --at`, `why`, `rebuild` and `forget` as a user types them."""

import asyncio
import json
import os
import sys
from datetime import UTC, datetime, timedelta

import pytest

from consumer.lifecycle.model import Event, Status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from tests.builders import HOUR, close, message
from tests.conftest import opened
from tests.e2e.conftest import Group
from tests.e2e.test_commands import command
from tests.stack.broker import delete
from tests.stack.database import execute, new_database
from tests.stack.services import Services

NOW = datetime.now(UTC)
STORY: list[Event] = [
    message(at=NOW - 72 * HOUR, event_id="question"),
    close(Status.AGENT_CLOSED, NOW - 23 * HOUR, event_id="closing", reason="solved"),
    close(Status.AGENT_CLOSED, NOW - 22 * HOUR, event_id="again", actor="agent-9"),
]
"""Expired, reclassified, outranked."""


@pytest.fixture
async def told(group: Group) -> Group:
    """A group with the story in its database, each event decided an hour after the one before."""
    async with opened(group.database) as store:
        await written(store, *STORY)
    for version in range(1, 5):
        back = f"recorded_at = now() - interval '{5 - version} h' WHERE version = {version}"
        await execute(group.database, f"UPDATE conversation_event SET {back}")
    return group


async def written(store: PostgresStore, *events: Event) -> None:
    await ConversationService(store).apply(events)


def hours_ago(hours: float) -> str:
    return f"{NOW - timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"


class TestShowAt:
    async def test_it_is_shown_as_it_was_decided_by_then(self, told: Group) -> None:
        code, out, _ = await command(told, "conversation", "show", "c-1", "--at", hours_ago(2.5))
        _, printed, _ = await command(told, "conversation", "show", "c-1", "--at", hours_ago(2.5), "--json")

        assert code == 0
        assert "as decided by then: version 2" in out
        assert "expired" in out
        assert "decided later: version 3, dated" in out
        then = json.loads(printed)
        assert (then["version"], then["sessions"][0]["status"]) == (2, "expired")
        assert [row["version"] for row in then["decided_later"]] == [3, 4]

    @pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S.%fZ", "%Y-%m-%dT%H:%M:%S+00:00"])
    async def test_the_common_forms_of_a_time_are_understood(self, told: Group, form: str) -> None:
        code, out, _ = await command(told, "conversation", "show", "c-1", "--at", f"{NOW - 2.5 * HOUR:{form}}")

        assert (code, "version 2" in out) == (0, True)

    @pytest.mark.parametrize("time", ["yesterday", "2026-13-01", "12:00", "2026-03-01T12:00:00+99:00", "1772366400"])
    async def test_another_form_is_a_usage_error(self, told: Group, time: str) -> None:
        code, _, err = await command(told, "conversation", "show", "c-1", "--at", time)

        assert (code, "Traceback" in err, "2026-03-01T12:00:00Z" in err) == (2, False, True)

    async def test_a_time_without_an_answer_is_an_error(self, told: Group) -> None:
        early, _, nothing = await command(told, "conversation", "show", "c-1", "--at", "2026-03-01")
        ahead, _, not_yet = await command(told, "conversation", "show", "c-1", "--at", "2126-03-01")
        await execute(told.database, "DELETE FROM conversation_event WHERE version = 1")
        pruned, _, cannot = await command(told, "conversation", "show", "c-1", "--at", hours_ago(2.5))

        assert (early, "its first event was decided at" in nothing) == (1, True)
        assert (ahead, "lies ahead" in not_yet) == (2, True)
        assert (pruned, "3 of 4 history rows are there" in cannot) == (1, True)


class TestWhy:
    async def test_it_says_what_decided_the_status(self, told: Group) -> None:
        code, out, _ = await command(told, "conversation", "why", "c-1")
        _, printed, _ = await command(told, "conversation", "why", "c-1", "--json")

        assert code == 0
        assert "c-1, session 1: agent_closed" in out
        assert "it outranked expired, which had taken effect at" in out
        assert 'with the reason "solved"' in out
        assert "Outranked: agent_closed by agent-9" in out
        assert "A support_closed, user_closed or failed dated by" in out
        why = json.loads(printed)
        assert (why["session"], why["status"], why["unknown"]) == (1, "agent_closed", None)
        assert [sentence["version"] for sentence in why["sentences"]][:3] == [2, 3, 4]

    async def test_a_session_that_is_not_there_is_an_error(self, told: Group) -> None:
        code, _, err = await command(told, "conversation", "why", "c-1", "--session", "7")

        assert (code, "has no session 7: it has 1" in err) == (1, True)

    async def test_a_pruned_history_is_named(self, told: Group) -> None:
        await execute(told.database, "DELETE FROM conversation_event WHERE version = 1")

        code, out, _ = await command(told, "conversation", "why", "c-1")

        assert (code, "3 of 4 history rows are there" in out) == (0, True)


class TestRebuild:
    async def test_what_differs_is_named_and_repaired_with_yes(self, told: Group) -> None:
        well = await command(told, "conversation", "rebuild", "c-1", "--check")
        await execute(told.database, "UPDATE conversation SET user_messages = 9")
        checked = await command(told, "conversation", "rebuild", "c-1")
        printed = await command(told, "conversation", "rebuild", "c-1", "--json")
        repaired = await command(told, "conversation", "rebuild", "c-1", "--yes")
        after = await command(told, "conversation", "rebuild", "c-1", "--check")
        _, history, _ = await command(told, "conversation", "history", "c-1")

        assert (well[0], "c-1: as its 4 history rows say" in well[1]) == (0, True)
        assert (checked[0], "session 1, user_messages is 9, by its history 1" in checked[1]) == (1, True)
        assert "nothing done: add --yes" in checked[1]
        assert (printed[0], json.loads(printed[1])["differences"][0]["name"]) == (1, "user_messages")
        assert (repaired[0], "repaired" in repaired[1]) == (0, True)
        assert (after[0], "c-1: as its 5 history rows say" in after[1]) == (0, True)
        assert "repair" in history

    async def test_all_are_compared_and_counted(self, told: Group) -> None:
        async with opened(told.database) as store:
            await written(store, *(message(at=NOW - HOUR, conversation_id=f"d-{n}") for n in range(450)))
        await execute(told.database, "UPDATE conversation SET status = 'progress' WHERE conversation_id = 'd-77'")
        await execute(told.database, "DELETE FROM conversation_event WHERE conversation_id = 'd-78'")

        code, out, _ = await command(told, "conversation", "rebuild", "--all")
        _, printed, _ = await command(told, "conversation", "rebuild", "--all", "--json")
        repaired, done, _ = await command(told, "conversation", "rebuild", "--all", "--yes")
        after, _, _ = await command(told, "conversation", "rebuild", "--all", "--check")

        assert (code, repaired, after) == (1, 0, 0)
        assert "d-77: session 1, status is progress, by its history pending" in out
        assert "451 conversations in" in out
        assert "449 equal, 1 differs, 1 not whole, 0 other policy" in out
        assert "1 repaired" in done
        *findings, tally = map(json.loads, printed.splitlines())
        assert {one["conversation_id"]: one["result"] for one in findings} == {"d-77": "differs", "d-78": "not whole"}
        assert (tally["checked"], tally["equal"], tally["differs"]) == (451, 449, 1)

    async def test_another_policy_repairs_nothing(self, told: Group) -> None:
        policy = {"CONSUMER_POLICY__PENDING_TTL": "96h"}

        code, out, _ = await command(told, "conversation", "rebuild", "c-1", "--yes", **policy)

        assert (code, "give it in CONSUMER_POLICY__*" in out) == (1, True)
        assert await told.one("SELECT version FROM conversation") == 4

    @pytest.mark.parametrize("arguments", ["rebuild", "rebuild c-1 --all", "rebuild c-1 --check --yes"])
    async def test_options_that_make_no_sense_are_usage_errors(self, group: Group, arguments: str) -> None:
        code, _, err = await command(group, "conversation", *arguments.split())

        assert (code, "Traceback" in err) == (2, False)

    async def test_an_empty_database_is_well(self, group: Group) -> None:
        code, out, _ = await command(group, "conversation", "rebuild", "--all")

        assert (code, "0 conversations in" in out) == (0, True)


class TestForget:
    async def test_the_plan_changes_nothing_and_yes_deletes(self, told: Group) -> None:
        _, plan, _ = await command(told, "conversation", "forget", "c-1")
        assert await told.one("SELECT count(*) FROM conversation") == 1
        _, printed, _ = await command(told, "conversation", "forget", "c-1", "--json")

        code, out, _ = await command(told, "conversation", "forget", "c-1", "--yes")
        again, _, err = await command(told, "conversation", "forget", "c-1", "--yes")

        assert "nothing done: add --yes" in plan
        assert "conversation_event: 4 rows" in plan
        assert (json.loads(printed)["deleted"], json.loads(printed)["rows"]["conversation_event"]) == (False, 4)
        assert (code, "c-1: deleted" in out) == (0, True)
        assert await told.one("SELECT count(*) FROM conversation_event") == 0
        assert (again, "the database has nothing of it" in err) == (1, True)

    async def test_it_says_what_kafka_holds_and_for_how_long(self, told: Group) -> None:
        await told.create_topic(f"{told.topic}.out", configs={"retention.ms": "-1"})
        settings = {"CONSUMER_KAFKA__TRANSITION_TOPIC": f"{told.topic}.out"}

        _, plan, _ = await command(told, "conversation", "forget", "c-1", **settings)
        await delete(told.kafka.bootstrap_servers, f"{told.topic}.out")

        assert f"{told.topic} (partition " in plan
        assert "for at most 14d2h" in plan
        assert f"{told.topic}.out (partition 0): without limit" in plan
        assert f"--entity-name {told.topic}.out --add-config retention.ms=" in plan
        assert "Another event of the same id starts a new conversation" in plan

    async def test_under_running_replicas_the_next_event_starts_anew(self, group: Group) -> None:
        replica = await group.replica()
        await group.publish(*(message(at=NOW - HOUR, event_id=f"before-{n}") for n in range(5)))
        await group.until_applied(5)

        code, _, _ = await command(group, "conversation", "forget", "c-1", "--yes")
        await group.publish(message(at=NOW, event_id="after"))
        await group.until_applied(6)

        assert code == 0
        assert await group.rows("SELECT version, session, user_messages FROM conversation") == [(1, 1, 1)]
        assert await group.rows("SELECT event_id FROM conversation_event") == [("after",)]
        assert await replica.ready()


@pytest.mark.parametrize("arguments", ["show {} --at 2026-03-01", "why {}", "rebuild {}", "forget {}"])
async def test_an_unknown_conversation_is_an_error(group: Group, arguments: str) -> None:
    code, _, err = await command(group, "conversation", *arguments.format("nobody").split())

    assert (code, "no conversation 'nobody'" in err) == (1, True)


@pytest.mark.parametrize("arguments", ["show c --at 2026-03-01", "why c", "rebuild --all", "forget c"])
async def test_a_database_without_tables_names_the_command(group: Group, stack: Services, arguments: str) -> None:
    async with new_database(stack.postgres, "test") as empty:
        code, _, err = await command(group, "conversation", *arguments.split(), CONSUMER_DATABASE__URL=empty)

    assert (code, "conversation-consumer migrate" in err, "Traceback" in err) == (2, True, False)


async def test_on_a_narrow_terminal_no_word_is_cut(told: Group) -> None:
    for arguments in (["show", "c-1", "--at", hours_ago(1)], ["why", "c-1"], ["rebuild", "c-1"], ["forget", "c-1"]):
        code, out, _ = await command(told, "conversation", *arguments, COLUMNS="80", TTY_COMPATIBLE="1")

        assert code == 0
        assert "…" not in out


@pytest.mark.parametrize("arguments", ["why c-1", "rebuild --all --json", "forget c-1"])
async def test_a_reader_that_has_seen_enough_is_no_error(told: Group, arguments: str) -> None:
    """As `head -1` does: it closes the pipe after the first line."""
    async with opened(told.database) as store:
        await written(store, *(message(at=NOW - HOUR, conversation_id=f"d-{n}") for n in range(300)))
    await execute(told.database, "DELETE FROM conversation_event WHERE conversation_id LIKE 'd-%'")
    line = f"{sys.executable} -m consumer conversation {arguments} | head -1"

    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", line),
        env={**os.environ, **told.environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)

    assert len(out.splitlines()) == 1
    assert b"Traceback" not in err
