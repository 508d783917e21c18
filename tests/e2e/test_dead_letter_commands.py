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
    assert none.startswith("no dead letters")


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
    code, out, _ = await command(letters, "dead-letters", "replay", "--yes", CONSUMER_PRUNE__HORIZON="0.001")

    assert (code, "older than CONSUMER_PRUNE__HORIZON" in out, "0 replayed" in out) == (0, True, True)
    assert await read_all(letters.kafka, letters.topic) == []


async def test_positions_choose_which(letters: Group) -> None:
    code, out, _ = await command(letters, "dead-letters", "replay", "--at", "0:1")
    missing, _, err = await command(letters, "dead-letters", "replay", "--at", "0:99", "--yes")

    assert (code, out.startswith("1 dead letters")) == (0, True)
    assert (missing, "no such dead letter: 0:99" in err) == (1, True)
