"""`dead-letters` as typed: listed, shown without bodies, replayed once, refused where a replay could do harm."""

import json
from datetime import UTC, datetime

import pytest

from consumer.decoding import encoded
from consumer.kafka.producer import KafkaProducer
from consumer.records import DeadLetter, Record
from schemas import Reason
from tests.builders import message
from tests.e2e.conftest import Group
from tests.e2e.test_commands import command
from tests.stack.broker import read_all

NOW = datetime.now(UTC)
GOOD_KEY, GOOD_VALUE = encoded(message(at=NOW, conversation_id="c-1"))
SECRET = b'{"text": "secret-body"}'


@pytest.fixture
async def letters(group: Group) -> Group:
    """One that is valid by now, as after an upgrade; one that will never be."""
    async with KafkaProducer.open(group.kafka) as producer:
        await producer.send(
            [
                DeadLetter(
                    Record(group.topic, 0, 7, 1_700_000_000_000, GOOD_KEY, GOOD_VALUE, (("trace", b"t-1"),)),
                    Reason.UNKNOWN_TYPE,
                    "type: not a type this build knows",
                ),
                DeadLetter(
                    Record(group.topic, 1, 8, 1_700_000_000_000, b"c-2", SECRET),
                    Reason.SCHEMA_VIOLATION,
                    "id: required",
                ),
            ]
        )
    return group


async def test_they_are_counted_by_topic_and_reason(letters: Group) -> None:
    code, out, _ = await command(letters, "dead-letters", "list")
    _, chosen, _ = await command(letters, "dead-letters", "list", "--reason", "unknown_type", "--json")
    _, none, _ = await command(letters, "dead-letters", "list", "--since", "2100-01-01")

    assert code == 0
    assert out.startswith("2 dead letters")
    assert letters.topic in out
    (letter,) = [json.loads(line) for line in chosen.splitlines()]
    assert (letter["reason"], letter["offset"], letter["key"], letter["replayed"]) == ("unknown_type", 7, "c-1", False)
    assert letter["recorded_at"] == "2023-11-14T22:13:20Z"
    assert none == "no dead letters\n"


async def test_bodies_are_shown_only_when_asked_for(letters: Group) -> None:
    _, listed, _ = await command(letters, "dead-letters", "list", "--each")
    _, masked, _ = await command(letters, "dead-letters", "show", "0:1")
    _, raw, _ = await command(letters, "dead-letters", "show", "0:1", "--raw")
    code, _, err = await command(letters, "dead-letters", "show", "0:99")

    assert "0:1" in listed
    assert "id: required" in listed
    assert "secret-body" not in listed + masked
    assert f"value: {SECRET.decode()}" in raw
    assert (code, "no dead letter at 0:99" in err) == (1, True)


async def test_a_replay_is_planned_done_once_and_applied(letters: Group) -> None:
    _, plan, _ = await command(letters, "dead-letters", "replay")
    nothing = await read_all(letters.kafka, letters.topic)
    code, done, _ = await command(letters, "dead-letters", "replay", "--yes")
    _, again, _ = await command(letters, "dead-letters", "replay", "--yes")
    _, listed, _ = await command(letters, "dead-letters", "list", "--json")

    assert "1       to replay" in plan
    assert "1       still invalid for this build" in plan
    assert "nothing done: add --yes" in plan
    assert nothing == []
    assert (code, "1 replayed" in done) == (0, True)
    assert "already replayed" in again
    assert "0 replayed" in again
    assert [json.loads(line)["replayed"] for line in listed.splitlines()] == [True, False]
    (record,) = await read_all(letters.kafka, letters.topic)
    assert (record.key, record.value, list(record.headers)) == (GOOD_KEY, GOOD_VALUE, [("trace", b"t-1")])

    replica = await letters.replica()
    await letters.until_applied(1)
    await replica.stop()
    assert await letters.history() == 1


async def test_one_older_than_the_history_is_refused(letters: Group) -> None:
    code, out, _ = await command(letters, "dead-letters", "replay", "--yes", CONSUMER_PRUNE__HORIZON="1ms")

    assert (code, "older than CONSUMER_PRUNE__HORIZON" in out, "0 replayed" in out) == (0, True, True)
    assert await read_all(letters.kafka, letters.topic) == []


async def test_one_of_a_topic_that_is_gone_is_left_out_and_the_others_are_replayed(letters: Group) -> None:
    gone = Record(f"{letters.topic}-gone", 0, 3, 1_700_000_000_000, GOOD_KEY, GOOD_VALUE)
    async with KafkaProducer.open(letters.kafka) as producer:
        await producer.send([DeadLetter(gone, Reason.UNKNOWN_TYPE, "type: unknown")])

    code, out, _ = await command(letters, "dead-letters", "replay", "--reason", "unknown_type", "--yes")

    assert code == 0
    assert "1       of a topic that does not exist any more" in out
    assert "1 replayed" in out
    assert len(await read_all(letters.kafka, letters.topic)) == 1


async def test_times_are_taken_as_they_are_printed_or_as_how_long_ago(letters: Group) -> None:
    async def listed(*arguments: str) -> list[str]:
        _, out, _ = await command(letters, "dead-letters", "list", "--json", *arguments)
        return [json.loads(line)["position"] for line in out.splitlines()]

    _, table, _ = await command(letters, "dead-letters", "list", "--topic", letters.topic, "--reason", "unknown_type")
    printed = " ".join(table.splitlines()[-1].split()[-2:])
    _, facts, _ = await command(letters, "dead-letters", "list", "--json", "--reason", "unknown_type")

    assert "0:0" in await listed("--since", printed)
    assert "0:0" in await listed("--since", json.loads(facts)["dead_lettered_at"])
    assert "0:0" not in await listed("--until", printed)
    assert await listed("--since", "1h") == ["0:0", "0:1"]
    assert await listed("--since", "0001-01-01") == ["0:0", "0:1"]
    assert await listed("--until", "1h") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("list --reason nope", "'nope' is not one of 'oversized'"),
        ("list --since yesterday", "'yesterday' is no time: write it as 2026-11-01"),
        ("list --until 999999999999d", "is no time"),
        ("list more", "unexpected extra argument"),
        ("show", "Missing argument 'PARTITION:OFFSET'"),
        ("show 42", "'42' is no position: PARTITION:OFFSET"),
        ("show 0:-1", "'0:-1' is no position"),
        ("show 0:1 0:2", "unexpected extra argument"),
        ("replay --at all", "'all' is no position"),
        ("replay --yes --no", "No such option"),
        ("delete", "No such command 'delete'"),
    ],
)
async def test_wrong_input_is_a_usage_error_that_says_what_is_right(group: Group, arguments: str, said: str) -> None:
    code, out, err = await command(group, "dead-letters", *arguments.split())

    assert (code, out) == (2, "")
    assert said in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize("arguments", ["list", "list --each --json", "show 0:0", "replay", "replay --yes"])
async def test_without_kafka_each_says_so_in_one_line(group: Group, arguments: str) -> None:
    nowhere = {"CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"}

    code, out, err = await command(group, "dead-letters", *arguments.split(), **nowhere)

    assert (code, out) == (1, "")
    assert err.startswith("error: no connection to Kafka: 127.0.0.1:1")
    assert "CONSUMER_KAFKA__BOOTSTRAP_SERVERS" in err
    assert len(err.splitlines()) == 1


async def test_what_a_producer_wrote_does_not_drive_the_terminal(group: Group) -> None:
    escape = b"\x1b]0;owned\x07\x1b[2J"
    hostile = Record(
        group.topic, 0, 1, 1_700_000_000_000, b"key" + escape, b"line 1\nline 2" + escape, (("h", escape),)
    )
    async with KafkaProducer.open(group.kafka) as producer:
        await producer.send([DeadLetter(hostile, Reason.INVALID_JSON, "not JSON")])

    _, each, _ = await command(group, "dead-letters", "list", "--each")
    _, raw, _ = await command(group, "dead-letters", "show", "0:0", "--raw")

    assert "\x1b" not in each + raw
    assert r"key\x1b]0;owned\x07\x1b[2J" in each
    assert r"h: \x1b]0;owned" in raw
    assert "line 1\nline 2\\x1b" in raw


async def test_positions_choose_which(letters: Group) -> None:
    code, out, _ = await command(letters, "dead-letters", "replay", "--at", "0:1")
    missing, _, err = await command(letters, "dead-letters", "replay", "--at", "0:99", "--yes")

    assert (code, out.startswith("1 dead letter\n")) == (0, True)
    assert (missing, "no such dead letter: 0:99" in err) == (1, True)
