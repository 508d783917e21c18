"""The commands as a user types them: what they print, where they exit, what they say when held wrong."""

import asyncio
import json
import os
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from consumer.decoding import as_record
from consumer.kafka.admin import admin
from consumer.lifecycle.model import Status
from consumer.postgres import migrations
from consumer.postgres.tables import REQUIRED_REVISION
from consumer.service.service import ConversationService
from tests.builders import HOUR, close, message
from tests.conftest import aged, opened
from tests.e2e.conftest import Group, until
from tests.stack.broker import delete, read_all
from tests.stack.citus import with_path
from tests.stack.database import connected, execute, new_database
from tests.stack.roles import as_owner, as_reader
from tests.stack.services import Services

NOW = datetime.now(UTC)


async def command(group: Group, *arguments: str, **settings: str) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "consumer", *arguments),
        env={**inherited, **group.environment, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 60)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class TestRunHeldWrong:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("CONSUMER_KAFKA__BOOTSTRAP_SERVER", "localhost:9092"),
            ("CONSUMER_DATABASE__WRITERS", "none"),
        ],
    )
    async def test_a_wrong_setting_is_named(self, group: Group, name: str, value: str) -> None:
        code, _, err = await command(group, "run", **{name: value})

        assert (code, "Traceback" in err) == (2, False)
        assert name in err

    async def test_a_missing_topic_names_the_command(self, group: Group) -> None:
        code, _, err = await command(group, "run", CONSUMER_KAFKA__TOPICS="nobody-made-this")

        assert code == 2
        assert "topic nobody-made-this does not exist: run `conversation-consumer topics`" in err

    async def test_a_dead_letter_topic_that_is_too_small_is_named(self, group: Group) -> None:
        await delete(group.kafka.bootstrap_servers, group.kafka.dead_letter_topic)
        await group.create_topic(group.kafka.dead_letter_topic)

        code, _, err = await command(group, "run")

        assert code == 2
        assert f"max.message.bytes of {group.kafka.dead_letter_topic}" in err

    async def test_an_old_schema_names_the_command(self, group: Group, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            code, _, err = await command(group, "run", CONSUMER_DATABASE__URL=empty)

        assert code == 2
        assert "run `conversation-consumer migrate`" in err

    async def test_a_database_that_is_not_there_is_an_error_not_a_traceback(self, group: Group) -> None:
        code, _, err = await command(group, "run", CONSUMER_DATABASE__URL="postgresql://me:hunter2@127.0.0.1:1/none")

        assert (code, "Traceback" in err, "hunter2" in err) == (1, False, False)

    async def test_an_unknown_command_is_a_usage_error(self, group: Group) -> None:
        code, _, err = await command(group, "jump")

        assert (code, "jump" in err) == (2, True)


class TestMigrate:
    async def test_it_makes_the_schema_that_run_needs(self, group: Group, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            _, before, _ = await command(group, "migrate", "status", CONSUMER_DATABASE__URL=empty)
            code, _, _ = await command(group, "migrate", CONSUMER_DATABASE__URL=empty)
            _, after, _ = await command(group, "migrate", "status", CONSUMER_DATABASE__URL=empty)

        assert code == 0
        assert before.startswith(f"database nothing, this build {migrations.head()}, needed {REQUIRED_REVISION}")
        assert after.startswith(f"database {migrations.head()}, this build {migrations.head()}")

    async def test_replicas_may_migrate_at_once(self, group: Group, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            runs = await asyncio.gather(*(command(group, "migrate", CONSUMER_DATABASE__URL=empty) for _ in range(3)))

        assert [code for code, _, _ in runs] == [0, 0, 0]

    async def test_it_prints_the_statements(self, group: Group) -> None:
        code, out, _ = await command(group, "migrate", "sql")

        assert (code, "CREATE TABLE kafka_offset" in out) == (0, True)


async def test_topics_are_made_once(group: Group) -> None:
    names = {
        f"CONSUMER_KAFKA__{kind}": f"{group.topic}.{kind.lower()}"
        for kind in ("TOPICS", "DEAD_LETTER_TOPIC", "TRANSITION_TOPIC")
    }

    _, first, _ = await command(group, "topics", "--partitions", "2", **names)
    code, second, _ = await command(group, "topics", "--partitions", "2", **names)
    await delete(group.kafka.bootstrap_servers, *names.values())

    assert (code, first.count("created"), second.count("was there")) == (0, 3, 3)


async def test_publish_sends_the_good_lines_and_names_the_bad_ones(group: Group, tmp_path: Path) -> None:
    good = [json.dumps(as_record(message(at=NOW, conversation_id=f"c-{number}"))) for number in range(3)]
    file = tmp_path / "events.jsonl"
    changes: list[dict[str, object]] = [{"data": {}}, {"type": "close"}]
    bad = [json.dumps({**as_record(close()), **change}) for change in changes]
    file.write_text("\n".join([good[0], "nonsense", "", good[1], *bad, good[2]]))

    code, out, err = await command(group, "publish", str(file))

    assert code == 1
    assert "3 published, 3 rejected" in out
    assert "line 2: not a JSON object" in err
    assert "line 5: schema_violation: data.status: is required" in err
    assert "line 6: unknown_type: type: is not a type that this build knows: conversation.inbound-message.v1," in err
    records = await read_all(group.kafka, group.topic)
    assert sorted((record.key, record.value) for record in records) == [
        (f"c-{number}".encode(), line.encode()) for number, line in enumerate(good)
    ]


async def test_publish_says_that_there_was_nothing_to_read(group: Group, tmp_path: Path) -> None:
    empty, blank = tmp_path / "empty", tmp_path / "blank"
    empty.touch()
    blank.write_text("\n\n")

    code, out, err = await command(group, "publish", str(empty), str(blank))

    assert (code, out) == (1, "")
    assert f"nothing was read from {empty}, {blank}" in err


async def test_publish_to_a_missing_topic_names_the_command(group: Group, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(as_record(message(at=NOW))))
    group.topic = "nobody-made-this"

    code, _, err = await command(group, "publish", str(file))

    assert (code, "topic nobody-made-this does not exist" in err) == (2, True)


async def test_publish_writes_to_input_topics_only(group: Group, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(json.dumps(as_record(message(at=NOW))))

    code, _, err = await command(group, "publish", str(file), "--topic", group.kafka.transition_topic)

    assert (code, "is none of" in err) == (2, True)
    assert await group.stored() == {}


async def test_an_id_that_looks_like_markup_is_printed_as_it_is(group: Group, database: str) -> None:
    async with opened(database) as store:
        await ConversationService(store).apply([message(at=NOW, conversation_id="[red]sub[/zz]")])

    code, shown, _ = await command(group, "conversation", "history", "[red]sub[/zz]")
    _, _, err = await command(group, "conversation", "show", "[bold]nope[/]")

    assert (code, "[red]sub[/zz]" in shown) == (0, True)
    assert "no conversation '[bold]nope[/]'" in err


async def test_a_database_without_tables_names_the_command(group: Group, stack: Services) -> None:
    async with new_database(stack.postgres, "test") as empty:
        code, _, err = await command(group, "conversation", "show", "c-1", CONSUMER_DATABASE__URL=empty)

    assert (code, "run `conversation-consumer migrate`" in err, "Traceback" in err) == (2, True, False)


@pytest.mark.parametrize(
    "arguments", ["conversation show c-1", "conversation history c-1", "offsets show", "migrate status"]
)
async def test_a_reader_may_run_the_commands_that_only_read(group: Group, arguments: str) -> None:
    async with opened(group.database) as store:
        await ConversationService(store).apply([message(at=NOW)])

    code, _, err = await command(group, *arguments.split(), CONSUMER_DATABASE__URL=as_reader(group.database))

    assert (code, err) == (0, "")


async def test_the_app_may_not_migrate(group: Group) -> None:
    await execute(as_owner(group.database), "DELETE FROM alembic_version")

    code, _, err = await command(group, "migrate")

    assert (code, "Traceback" in err) == (2, False)
    assert "permission denied for schema public" in err
    assert "CONSUMER_DATABASE__URL" in err


async def test_a_database_that_does_not_exist_is_named(group: Group, stack: Services) -> None:
    for arguments in (("run",), ("migrate",)):
        code, _, err = await command(group, *arguments, CONSUMER_DATABASE__URL=f"{stack.postgres}_nobody_made_this")

        assert (code, "check CONSUMER_DATABASE__URL" in err, "Traceback" in err) == (2, True, False)


async def test_a_port_that_is_taken_is_named(group: Group) -> None:
    replica = await group.replica()

    code, _, err = await command(group, "run", CONSUMER_HTTP__PORT=str(replica.port))

    assert (code, f"CONSUMER_HTTP__PORT={replica.port}" in err, "Traceback" in err) == (2, True, False)


async def test_an_admin_port_that_is_taken_is_named(group: Group) -> None:
    replica = await group.replica()

    code, _, err = await command(group, "run", CONSUMER_HTTP__PORT="0", CONSUMER_HTTP__ADMIN_PORT=str(replica.port))

    assert (code, f"CONSUMER_HTTP__ADMIN_PORT={replica.port}" in err, "Traceback" in err) == (2, True, False)


async def test_a_conversation_is_shown_with_its_history(group: Group) -> None:
    replica = await group.replica()
    await group.publish(
        message(at=NOW - HOUR), close(Status.AGENT_CLOSED, NOW, reason="solved"), message(at=NOW + HOUR / 3600)
    )
    await group.until_applied(3)
    await replica.stop()

    _, shown, _ = await command(group, "conversation", "show", "c-1")
    _, sessions, _ = await command(group, "conversation", "show", "c-1", "--json")
    _, printed, _ = await command(group, "conversation", "history", "c-1")
    _, rows, _ = await command(group, "conversation", "history", "c-1", "--json")

    assert "agent_closed" in shown
    assert "solved" in shown
    assert [session["status"] for session in json.loads(sessions)["sessions"]] == ["agent_closed", "pending"]
    assert "pending -> agent_closed" in printed
    assert [json.loads(row)["version"] for row in rows.splitlines()] == [1, 2, 3]


async def test_an_unknown_conversation_is_an_error(group: Group) -> None:
    for what in ("show", "history"):
        code, _, err = await command(group, "conversation", what, "nobody")

        assert (code, "no conversation 'nobody'" in err) == (1, True)


class TestPrune:
    async def old_history(self, group: Group) -> None:
        """A young row of one conversation, and old ones: three of it, one of another."""
        async with opened(group.database) as store:
            service = ConversationService(store)
            await service.apply([*(message(at=NOW - HOUR) for _ in range(3)), message(at=NOW, conversation_id="c-2")])
            await aged(group.database, 40)
            await service.apply([message(at=NOW)])

    async def history(self, group: Group) -> list[tuple[str, int]]:
        return await group.rows("SELECT conversation_id, version FROM conversation_event ORDER BY 1, 2")

    async def test_without_yes_it_says_what_it_would_do(self, group: Group) -> None:
        await self.old_history(group)

        code, plan, _ = await command(group, "prune")
        _, counted, _ = await command(group, "prune", "--dry-run")

        assert code == 0
        assert re.search(r"to go: history recorded before \d{4}-\d\d-\d\d .*, 30d ago", plan)
        assert f"{group.topic}: no record is older than 14d2h" in plan
        assert "table: 0.0 MiB, 1 pages" in plan
        assert "nothing done: add --yes" in plan
        assert "4 rows to remove" in counted
        assert len(await self.history(group)) == 5

    async def test_with_yes_it_removes_what_is_older_than_the_horizon(self, group: Group) -> None:
        await self.old_history(group)

        _, early, _ = await command(group, "prune", "--yes", CONSUMER_PRUNE__HORIZON="41d")
        code, out, _ = await command(group, "prune", "--yes", "--older-than", "39d12h", "--pause", "0.01")

        assert "0 rows removed" in early
        assert (code, "4 rows removed in" in out) == (0, True)
        assert await self.history(group) == [("c-1", 4)]

    async def test_what_is_left_of_a_history_is_told_as_such(self, group: Group) -> None:
        await self.old_history(group)
        await command(group, "prune", "--yes")

        _, part, _ = await command(group, "conversation", "history", "c-1")
        code, nothing, _ = await command(group, "conversation", "history", "c-2")
        _, no_rows, _ = await command(group, "conversation", "history", "c-2", "--json")
        _, shown, _ = await command(group, "conversation", "show", "c-2")

        assert "c-1, 3 of 4 rows pruned" in part
        assert (code, "c-2, 1 of 1 rows pruned" in nothing, no_rows) == (0, True, "")
        assert "c-2, version 1" in shown

    async def test_a_horizon_that_the_log_outlives_is_refused(self, group: Group) -> None:
        await self.old_history(group)

        code, _, err = await command(group, "prune", "--older-than", "14d", "--yes")

        assert code == 2
        assert f"a horizon of 14d is too short: a record of {group.topic} can become 14d2h old" in err
        assert "Prune with --older-than 14d2h or more, or lower the topic's retention.ms or segment.ms" in err
        assert len(await self.history(group)) == 5

    @pytest.mark.parametrize(
        "configs", [{"retention.ms": "-1"}, {"cleanup.policy": "compact"}, {"segment.ms": str(2**63 - 1)}]
    )
    async def test_a_topic_that_keeps_its_records_is_refused(self, group: Group, configs: dict[str, str]) -> None:
        await group.create_topic(name := f"{group.topic}.kept", configs=configs)

        code, _, err = await command(group, "prune", "--yes", CONSUMER_KAFKA__TOPICS=f"{group.topic},{name}")
        await delete(group.kafka.bootstrap_servers, name)

        assert (code, f"{name} keeps records without limit, so no history can be pruned" in err) == (2, True)

    async def test_a_topic_that_another_group_consumes_into_the_same_database_counts(self, group: Group) -> None:
        await group.create_topic(name := f"{group.topic}.kept", configs={"retention.ms": "-1"})
        await execute(group.database, f"INSERT INTO kafka_offset VALUES ('others', '{name}', 0, 'x', 0)")

        code, _, err = await command(group, "prune", "--yes")
        await delete(group.kafka.bootstrap_servers, name)

        assert (code, f"{name} keeps records without limit" in err) == (2, True)

    async def test_a_topic_that_keeps_records_for_a_short_time_allows_a_short_horizon(self, group: Group) -> None:
        short = {"retention.ms": str(24 * 3_600_000), "segment.ms": str(6 * 3_600_000)}
        await group.create_topic(name := f"{group.topic}.short", configs=short)

        code, plan, _ = await command(group, "prune", "--older-than", "32h", CONSUMER_KAFKA__TOPICS=name)
        refused, _, _ = await command(group, "prune", "--older-than", "31h", CONSUMER_KAFKA__TOPICS=name)
        await delete(group.kafka.bootstrap_servers, name)

        assert (code, f"{name}: no record is older than 32h" in plan, refused) == (0, True, 2)

    @pytest.mark.parametrize(
        ("arguments", "printed"),
        [
            (("--older-than", "soon"), "'soon' is no duration: write it as 30d"),
            (("--older-than", "9999999d"), "36500d at most"),
            (("--dry-run", "--yes"), "not both"),
            (("--batch", "0"), "--batch"),
        ],
    )
    async def test_options_that_make_no_sense_are_named(
        self, group: Group, arguments: tuple[str, ...], printed: str
    ) -> None:
        code, _, err = await command(group, "prune", *arguments)

        assert (code, printed in err, "Traceback" in err) == (2, True, False)

    async def test_a_missing_topic_is_named(self, group: Group) -> None:
        code, _, err = await command(group, "prune", "--yes", CONSUMER_KAFKA__TOPICS="nobody-made-this")

        assert (code, "topic nobody-made-this does not exist" in err) == (2, True)

    async def test_a_signal_stops_it_between_two_transactions(self, group: Group) -> None:
        async with opened(group.database) as store:
            await ConversationService(store).apply([message(at=NOW, conversation_id=f"c-{n}") for n in range(400)])
        await aged(group.database, 40)

        async def some_are_gone() -> bool:
            return int(await group.one("SELECT count(*) FROM conversation_event")) < 400

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "consumer", "prune", "--yes", "--batch", "1", "--pause", "30"),
            env={**os.environ, **group.environment},
            stdout=asyncio.subprocess.PIPE,
        )
        await until(some_are_gone, "the first page is pruned")
        process.terminate()
        out, _ = await asyncio.wait_for(process.communicate(), 20)
        _, rest, _ = await command(group, "prune", "--yes")

        (stopped,) = map(int, re.findall(r"(\d+) rows removed .*; stopped before the end", out.decode()))
        assert (process.returncode, 0 < stopped < 400) == (1, True)
        assert f"{400 - stopped} rows removed" in rest


async def test_an_offset_is_set_only_with_yes(group: Group) -> None:
    replica = await group.replica()
    await group.publish(*(message(at=NOW) for _ in range(3)))
    await group.until_applied(3)
    await replica.stop()
    ((home, _),) = [place for place in (await group.stored()).items() if place[1] == 3]

    _, plan, _ = await command(group, "offsets", "set", group.topic, str(home), "1")
    unchanged = await group.stored()
    code, _, _ = await command(group, "offsets", "set", group.topic, str(home), "1", "--yes")
    _, shown, _ = await command(group, "offsets", "show")

    assert f"{group.topic}[{home}]: 3 -> 1" in plan
    assert "nothing done: add --yes" in plan
    assert (code, unchanged[home], (await group.stored())[home]) == (0, 3, 1)
    assert group.topic in shown


async def test_an_offset_outside_the_log_is_refused(group: Group) -> None:
    code, _, err = await command(group, "offsets", "set", group.topic, "0", "7", "--yes")

    assert (code, f"{group.topic}[0] has offsets 0 to 0" in err) == (2, True)


async def test_an_offset_of_a_partition_that_does_not_exist_is_an_error(group: Group) -> None:
    code, _, err = await command(group, "offsets", "set", group.topic, "99", "0", "--yes")

    assert (code, f"there is no {group.topic}[99]" in err) == (2, True)


async def test_an_offset_of_a_topic_that_does_not_exist_names_the_command(group: Group) -> None:
    code, _, err = await command(group, "offsets", "set", "none", "0", "end", CONSUMER_KAFKA__TOPICS="none")

    assert (code, "topic none does not exist: run `conversation-consumer topics`" in err) == (2, True)


async def test_the_settings_are_listed_whole(group: Group) -> None:
    _, out, _ = await command(group, "config")

    assert "CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS" in out


class TestTop:
    async def test_replicas_are_shown_side_by_side(self, group: Group) -> None:
        replica = await group.replica()
        await group.publish(message(at=NOW), message(at=NOW))
        await group.until_applied(2)

        code, out, _ = await command(
            group, "top", f"127.0.0.1:{replica.port}", "127.0.0.1:1", "--rounds", "2", "--interval", "0.1"
        )

        assert code == 0
        assert "0.00%" in out
        assert "no answer from http://127.0.0.1:1/metrics: Cannot connect" in out

    async def test_the_address_of_a_replica_may_end_like_a_page(self, group: Group) -> None:
        replica = await group.replica()
        host = f"127.0.0.1:{replica.port}"

        code, out, _ = await command(
            group, "top", f"{host}/", f"http://{host}/", f"http://{host}/metrics", "--rounds", "1"
        )

        assert (code, "no answer" in out) == (0, False)

    async def test_what_has_no_metrics_is_named(self, group: Group) -> None:
        replica = await group.replica()
        page = f"http://127.0.0.1:{replica.port}/status"

        code, out, _ = await command(group, "top", page, "127.0.0.1:99999", "--rounds", "1")

        assert code == 1
        assert f"no metrics at {page}: should be the URL of /metrics" in out
        assert "no answer from 127.0.0.1:99999: should be HOST:PORT or a URL" in out


class TestDoctor:
    async def test_where_all_is_well_it_says_so(self, group: Group, stack: Services) -> None:
        transitions = f"{group.topic}.transition"
        await group.create_topic(transitions)
        replica = await group.replica()
        await group.publish(message(at=NOW))
        await group.until_applied(1)
        await replica.stop()

        code, out, _ = await command(group, "doctor", CONSUMER_KAFKA__TRANSITION_TOPIC=transitions)

        await delete(stack.kafka, transitions)
        assert (code, "✗" in out) == (0, False)
        assert f"✓ topics: {group.topic}, {group.kafka.dead_letter_topic}, {transitions} are there" in out
        assert "1 transition waits, the oldest for" in out
        assert "3 partitions, 0 records behind" in out

    async def test_every_topic_that_is_missing_is_named_at_once(self, group: Group) -> None:
        missing = {
            "CONSUMER_KAFKA__TOPICS": f"{group.topic},missing.events",
            "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": "missing.dead-letter",
            "CONSUMER_KAFKA__TRANSITION_TOPIC": "missing.transition",
        }

        code, out, _ = await command(group, "doctor", **missing)

        assert code == 1
        assert "topics missing.events, missing.dead-letter, missing.transition do not exist: run" in out

    async def test_a_missing_transition_topic_hides_no_other_finding(self, group: Group) -> None:
        _, out, _ = await command(group, "doctor", CONSUMER_KAFKA__TRANSITION_TOPIC="missing.transition")

        assert "topic missing.transition does not exist: run" in out
        assert "✓ partition parity" in out

    @pytest.mark.parametrize(
        ("settings", "printed"),
        [
            ({"CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}, "CONSUMER_KAFKA__BOOTSTRAP_SERVERS"),
            ({"CONSUMER_KAFKA__TOPICS": "nobody-made-this"}, "run `conversation-consumer topics`"),
            ({"CONSUMER_DATABASE__URL": "postgresql://127.0.0.1:1/none"}, "host and port in CONSUMER_DATABASE__URL"),
        ],
    )
    async def test_what_is_missing_comes_with_its_remedy(
        self, group: Group, settings: dict[str, str], printed: str
    ) -> None:
        code, out, err = await command(group, "doctor", **settings)

        assert (code, printed in out, err) == (1, True, "")

    async def test_an_old_schema_is_found(self, group: Group, stack: Services) -> None:
        async with new_database(stack.postgres, "test") as empty:
            code, out, _ = await command(group, "doctor", CONSUMER_DATABASE__URL=empty)

        assert (code, "run `conversation-consumer migrate`" in out) == (1, True)

    async def test_a_standby_is_found(self, group: Group, stack: Services) -> None:
        database = with_path(stack.postgres, urlsplit(group.database).path[1:])
        await execute(database, "CREATE FUNCTION pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'")
        standby = f"{group.database}?search_path=public,pg_catalog"

        code, out, _ = await command(group, "doctor", CONSUMER_DATABASE__URL=standby)

        assert code == 1
        assert "PostgreSQL answers: yes, but it is a standby" in out
        assert "have CONSUMER_DATABASE__URL name the primary" in out

    async def test_an_offset_outside_the_log_is_found(self, group: Group) -> None:
        name = group.kafka.group_id
        await group.rows(f"INSERT INTO kafka_offset VALUES ('{name}', '{group.topic}', 0, 'x', 5) RETURNING 1")

        code, out, _ = await command(group, "doctor")

        assert (code, f"not in the log: {group.topic}[0] at 5" in out) == (1, True)

    async def test_an_offset_of_a_partition_that_is_gone_is_no_failure(self, group: Group) -> None:
        name = group.kafka.group_id
        async with admin(group.kafka) as client:
            cluster = await client.cluster_id()
        await group.rows(
            f"INSERT INTO kafka_offset VALUES ('{name}', '{group.topic}', 0, '{cluster}', 0), "
            f"('{name}', '{group.topic}', 99, '{cluster}', 5), ('{name}', 'old.events', 0, '{cluster}', 7) RETURNING 1"
        )

        _, out, _ = await command(group, "doctor")

        assert "✓ offsets: 1 partitions, 0 records behind; 2 of partitions that are gone" in out

    async def test_a_setting_of_the_server_that_could_be_better_is_a_warning_and_no_failure(
        self, group: Group, stack: Services
    ) -> None:
        name, transitions = group.database.rpartition("/")[2], f"{group.topic}.transition"
        await group.create_topic(transitions)
        _, before, _ = await command(group, "doctor", CONSUMER_KAFKA__TRANSITION_TOPIC=transitions)
        await execute(stack.postgres, f"ALTER DATABASE {name} SET wal_compression = 'pglz'")

        code, after, _ = await command(group, "doctor", CONSUMER_KAFKA__TRANSITION_TOPIC=transitions)

        await delete(stack.kafka, transitions)
        assert "! wal_compression: off\n  → " in before
        assert (code, "✓ wal_compression: pglz\n" in after) == (0, True)

    async def test_deadlines_that_nobody_lets_pass_are_found(self, group: Group, database: str) -> None:
        async with opened(database) as store:
            await ConversationService(store).apply([message(at=NOW - 49 * HOUR)])

        code, out, _ = await command(group, "doctor")

        assert (code, "start `conversation-consumer ticker`" in out) == (1, True)

    async def test_what_cannot_be_counted_hides_no_other_finding(self, group: Group) -> None:
        async with connected(group.database) as holder, holder.transaction():
            await holder.execute("LOCK TABLE conversation IN ACCESS EXCLUSIVE MODE")
            code, out, _ = await command(group, "doctor")

        assert code == 1
        assert "✗ deadlines: not checked\n  → another transaction holds the table conversation" in out
        assert "✓ outbox: no transition waits" in out
