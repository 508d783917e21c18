"""`what-if` and `report` as a user types them."""

import asyncio
import csv
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumer.lifecycle.model import Author, Event, Status
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, close, message, tick
from tests.conftest import opened
from tests.e2e.conftest import Group
from tests.e2e.test_command_line import consumer
from tests.e2e.test_commands import command
from tests.stack.database import execute, new_database
from tests.stack.services import Services

NOW = datetime.now(UTC)
SHORTER = ("--policy", "pending_ttl=12h")
COMMANDS = [("what-if", *SHORTER), ("report", "conversations"), ("report", "races")]


def answered(conversation_id: str, hours_later: int) -> list[Event]:
    """A question of yesterday, its answer, a close."""
    at = NOW - 30 * HOUR
    events = (message(at=at), message(Author.AGENT, at + hours_later * HOUR), close(at=at + 25 * HOUR, reason="solved"))
    return [event._replace(conversation_id=conversation_id) for event in events]


async def store(group: Group, *events: Event) -> None:
    """Decided when they were written."""
    async with opened(group.database) as database:
        for event in events:
            await ConversationService(database).apply([event])
    await execute(group.database, "UPDATE conversation_event SET recorded_at = occurred_at")


class TestWhatIf:
    async def test_it_tells_the_difference(self, group: Group) -> None:
        await store(group, *answered("quick", 1), *answered("slow", 20))

        code, out, err = await command(group, "what-if", *SHORTER, "--ids")

        assert (code, err) == (0, "")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert lines[0] == "pending_ttl: 48h in force, what if 12h"
        assert "expired 0 1 +1" in lines
        assert "agent_closed 2 2 0" in lines
        assert lines[-4].startswith("1 of 2 conversations (50.0%) would have ended otherwise")
        assert "slow 1 agent_closed (solved) expired (pending_ttl)" in lines
        assert "slow 2 - agent_closed (solved)" in lines
        assert "quick" not in out

    async def test_as_json(self, group: Group) -> None:
        await store(group, *answered("quick", 1), *answered("slow", 20))

        _, out, _ = await command(group, "what-if", *SHORTER, "--json", "--ids", "--limit", "1")

        found = json.loads(out)
        assert found["policy"] == {"pending_ttl": {"in_force": "48h", "changed": "12h"}}
        assert found["sessions"]["expired"] == {"in_force": 0, "changed": 1}
        assert (found["ended_otherwise"], found["not_as_stored"], found["events"]) == (1, 0, 6)
        assert [entry["conversation_id"] for entry in found["ids"]] == ["slow"]

    async def test_the_log_gives_the_same_without_a_database(self, group: Group) -> None:
        await group.publish(*answered("quick", 1), *answered("slow", 20), *answered("slow", 20)[:1])
        await group.publish_raw([(b"slow", b"not json")])

        code, out, err = await command(
            group,
            *("what-if", "--source", "topic", "--from", "1h", *SHORTER, "--json", "--ids"),
            CONSUMER_DATABASE__URL="postgresql://127.0.0.1:1/none",
        )

        assert (code, err) == (0, "")
        found = json.loads(out)
        assert (found["conversations"], found["ended_otherwise"], found["dead_letters"]) == (2, 1, 1)
        assert [entry["conversation_id"] for entry in found["ids"]] == ["slow"]

    async def test_records_outside_the_period_are_left_out(self, group: Group) -> None:
        await group.publish(*answered("slow", 20))

        _, out, _ = await command(group, "what-if", "--source", "topic", "--to", "1h", *SHORTER, "--json")

        assert json.loads(out)["conversations"] == 0

    async def test_a_topic_that_is_not_there_is_named(self, group: Group) -> None:
        code, _, err = await command(
            group, "what-if", "--source", "topic", *SHORTER, CONSUMER_KAFKA__TOPICS="nobody-made-this"
        )

        assert (code, "topic nobody-made-this does not exist" in err) == (2, True)


class TestReport:
    async def test_conversations(self, group: Group) -> None:
        await store(group, *answered("quick", 1), *answered("slow", 3))

        code, out, err = await command(group, "report", "conversations")

        assert (code, err) == (0, "")
        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert lines[1] == "2 opened, 2 accepted, 2 closed"
        assert lines[2] == "time to acceptance: median 2h, p90 2h 48m"
        assert "2 100.0% agent_closed solved" in lines
        assert "pending 2h 8.0% 4h" in lines

    async def test_conversations_as_json_and_csv(self, group: Group) -> None:
        await store(group, *answered("quick", 1), *answered("slow", 3))

        _, as_json, _ = await command(group, "report", "conversations", "--json")
        _, as_csv, _ = await command(group, "report", "conversations", "--csv")

        closed_on = (NOW - 5 * HOUR).date().isoformat()
        found = json.loads(as_json)
        assert found["closings"] == [{"day": closed_on, "status": "agent_closed", "reason": "solved", "sessions": 2}]
        assert found["seconds_to_acceptance"] == {"median": 7200, "p90": 10080}
        heading, *rows = csv.reader(as_csv.splitlines())
        assert heading == ["measure", "day", "status", "reason", "value"]
        assert ["closed", closed_on, "agent_closed", "solved", "2"] in rows

    async def test_races(self, group: Group) -> None:
        at = NOW - 3 * HOUR
        await store(
            group,
            *(message(at=at - 48 * HOUR, conversation_id="expiring"), tick(NOW, conversation_id="expiring")),
            close(Status.AGENT_CLOSED, NOW - MINUTE, conversation_id="expiring"),
            *(message(at=at), close(Status.USER_CLOSED, at + HOUR), close(Status.AGENT_CLOSED, at + HOUR)),
        )

        code, out, _ = await command(group, "report", "races")
        _, as_json, _ = await command(group, "report", "races", "--json")
        _, as_csv, _ = await command(group, "report", "races", "--csv")

        lines = [" ".join(line.split()) for line in out.splitlines()]
        assert (code, lines[0].endswith(": 2 of 5 events")) == (0, True)
        assert any(line.startswith("1 reclassified from expired a close by hand") for line in lines)
        assert {(found["race"], found["events"]) for found in json.loads(as_json)["races"]} == {
            ("reclassified from expired", 1),
            ("outranked", 1),
        }
        assert as_csv.startswith("day,race,events\n")

    async def test_only_the_period_is_counted(self, group: Group) -> None:
        await store(group, *answered("quick", 1))

        _, before, _ = await command(group, "report", "conversations", "--to", "20h", "--json")
        _, after, _ = await command(group, "report", "conversations", "--from", "20h", "--json")

        found, later = json.loads(before), json.loads(after)
        assert (found["opened"], found["accepted"], found["closed"]) == (1, 1, 0)
        assert (later["opened"], later["accepted"], later["closed"]) == (0, 0, 1)


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
class TestEach:
    async def test_an_empty_database_is_no_error(self, group: Group, arguments: Sequence[str]) -> None:
        for option in ((), ("--json",), ("--csv",) if arguments[0] == "report" else ("--ids",)):
            code, out, err = await command(group, *arguments, *option)

            assert (code, err) == (0, "")
            assert out

    async def test_a_missing_schema_names_the_command(
        self, group: Group, stack: Services, arguments: Sequence[str]
    ) -> None:
        async with new_database(stack.postgres, "test") as empty:
            code, _, err = await command(group, *arguments, CONSUMER_DATABASE__URL=empty)

        assert (code, "run `conversation-consumer migrate`" in err) == (2, True)

    async def test_it_draws_a_picture(self, group: Group, tmp_path: Path, arguments: Sequence[str]) -> None:
        await store(group, *answered("slow", 20))

        for name in ("plot.png", "plot.svg"):
            code, _, err = await command(group, *arguments, "--plot", str(tmp_path / name))

            assert (code, err) == (0, "")
            assert (tmp_path / name).stat().st_size > 1000

    async def test_it_fits_80_columns(self, group: Group, arguments: Sequence[str]) -> None:
        await store(group, *answered("slow", 20), *answered("quick", 1))

        _, out, _ = await command(group, *arguments)

        assert max(map(len, out.splitlines())) <= 110
        assert max(len(line) for line in out.splitlines() if "would have" not in line) <= 80

    async def test_it_may_be_piped_into_head(self, group: Group, arguments: Sequence[str]) -> None:
        await store(group, *answered("slow", 20))
        read, _, errors = await piped(group, *arguments)

        assert (read.count("\n"), errors) == (1, "")

    async def test_a_period_that_is_none_is_a_usage_error(self, group: Group, arguments: Sequence[str]) -> None:
        for wrong, said in (
            (("--from", "yesterday"), "--from: 'yesterday' is no time"),
            (("--to", "2026-13-01"), "--to: '2026-13-01' is no time"),
            (("--from", "1d", "--to", "2d"), "is not before --to"),
            (("--from", "2999-01-01"), "is not before --to"),
            (("--plot", "picture.gif"), "the name should end in .png"),
            (("--plot", "/does/not/exist.png"), "there is no directory"),
        ):
            code, out, err = await command(group, *arguments, *wrong)

            assert (code, out, "Traceback" in err) == (2, "", False), wrong
            assert said in err


async def piped(group: Group, *arguments: str) -> tuple[str, int, str]:
    typed = " ".join(("python -m consumer".replace("python", sys.executable), *arguments))
    process = await asyncio.create_subprocess_shell(
        f"{typed} | head -1",
        env={**group.environment, "PATH": "/usr/bin:/bin"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode is not None
    return out.decode(), process.returncode, err.decode()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "pending_ttl=48h"),
        (("--policy", "pending_tl=3h"), "did you mean pending_ttl?"),
        (("--policy", "Pending-TTL=3h"), "did you mean pending_ttl?"),
        (("--policy", "tempo=3h"), "there are pending_ttl, progress_ttl"),
        (("--policy", "pending_ttl=soon"), "'soon' is no duration"),
        (("--policy", "pending_ttl=0s"), "'0s' is no duration"),
        (("--policy", "pending_ttl"), "'' is no duration"),
        (("--policy", "pending_ttl=1h", "--policy", "pending_ttl=2h"), "given twice"),
        (("--policy", "pending_ttl=1h", "--source", "memory"), "memory"),
        (("--policy", "pending_ttl=1h", "--limit", "0"), "limit"),
    ],
)
def test_a_policy_that_is_none_is_a_usage_error(arguments: tuple[str, ...], said: str) -> None:
    done = consumer("what-if", *arguments)

    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert said in done.stderr


def test_without_matplotlib_a_picture_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['matplotlib'] = None\n")

    done = consumer("report", "races", "--plot", "races.png", PYTHONPATH=str(tmp_path))

    assert (done.returncode, "conversation-consumer[plot]" in done.stderr) == (2, True)
