"""Dead letters on real Kafka: read back as they were, replayed byte for byte, marked."""

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest

from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin
from consumer.kafka.dead_letters import ReplayMarker, StoredDeadLetter, read, replay
from consumer.kafka.producer import HEADER, KafkaProducer
from consumer.records import DeadLetter, Record
from consumer.settings import KafkaSettings
from schemas import Reason
from tests.stack.broker import delete, read_all
from tests.stack.services import Services

HEADERS = (("trace", b"\xff\x00"), (HEADER + "reason", b"of somebody else"))


@pytest.fixture
async def kafka(stack: Services) -> AsyncIterator[KafkaSettings]:
    """A broker with an input topic and a dead-letter topic of several partitions."""
    name = f"test-{secrets.token_hex(6)}"
    settings = KafkaSettings(
        bootstrap_servers=stack.kafka,
        group_id=name,
        topics=(f"{name}.events",),
        dead_letter_topic=f"{name}.dead-letter",
    )
    topics = (*settings.topics, settings.dead_letter_topic)
    async with admin(settings) as client:
        for topic in topics:
            await client.create(topic, 3, 1, {})
    yield settings
    await delete(stack.kafka, *topics)


def letter(kafka: KafkaSettings, number: int, key: bytes | None = b"c-1", value: bytes | None = b"\xff") -> DeadLetter:
    record = Record(kafka.topics[0], number % 3, number, 1_700_000_000_000 + number, key, value, HEADERS)
    return DeadLetter(record, Reason.INVALID_JSON, f"error {number}")


async def stored(kafka: KafkaSettings, since: datetime | None = None) -> list[StoredDeadLetter]:
    return [found async for found in read(kafka, since) if isinstance(found, StoredDeadLetter)]


async def test_a_dead_letter_is_read_back_as_it_was_sent(kafka: KafkaSettings) -> None:
    sent = [letter(kafka, 0), letter(kafka, 1, key=None), letter(kafka, 2, value=None), letter(kafka, 3, None, None)]
    async with KafkaProducer.open(kafka) as producer:
        await producer.send(sent)

    found = sorted(await stored(kafka), key=lambda one: one.record.offset)

    assert [one.record for one in found] == [one.record for one in sent]
    assert {(one.reason, one.group) for one in found} == {("invalid_json", kafka.group_id)}
    assert [one.error for one in found] == [f"error {number}" for number in range(4)]


async def test_only_those_since_a_time_are_read(kafka: KafkaSettings) -> None:
    async with KafkaProducer.open(kafka) as producer:
        await producer.send([letter(kafka, 0)])
        ((first),) = await stored(kafka)
        await producer.send([letter(kafka, 1), letter(kafka, 2, key=b"c-2")])

    later = await stored(kafka, first.at + timedelta(milliseconds=1))

    assert {one.record.offset for one in later} == {1, 2}
    assert await stored(kafka, datetime.now(UTC) + timedelta(hours=1)) == []


async def test_a_replayed_record_is_as_it_was_and_its_dead_letter_is_marked(kafka: KafkaSettings) -> None:
    async with KafkaProducer.open(kafka) as producer:
        await producer.send([letter(kafka, number, key=b"c-%d" % number) for number in range(3)])
        chosen = [one for one in await stored(kafka) if one.record.offset != 1]
        await replay(producer, kafka, chosen)

    replayed = await read_all(kafka, kafka.topics[0])
    markers = [found async for found in read(kafka) if isinstance(found, ReplayMarker)]

    assert sorted((r.key, r.value, tuple(r.headers)) for r in replayed) == [
        (b"c-0", b"\xff", HEADERS),
        (b"c-2", b"\xff", HEADERS),
    ]
    assert {marker.position for marker in markers} == {one.position for one in chosen}
    assert len(await stored(kafka)) == 3


async def test_records_that_somebody_else_put_there_are_left_out(kafka: KafkaSettings) -> None:
    async with KafkaProducer.open(kafka) as producer:
        await producer.publish(kafka.dead_letter_topic, [(b"key", b"value")])
        await producer.send([letter(kafka, 0)])

    assert [one.record.offset for one in await stored(kafka)] == [0]


async def test_a_missing_topic_is_named(stack: Services) -> None:
    nowhere = KafkaSettings(bootstrap_servers=stack.kafka, dead_letter_topic="not.there")

    with pytest.raises(ConfigurationError, match=r"topic not\.there does not exist: run"):
        await stored(nowhere)
