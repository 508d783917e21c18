"""Records of producers with another partitioner: counted, warned of once, found by `doctor`."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.partitioner import DefaultPartitioner
from structlog.testing import capture_logs

from consumer.kafka.admin import admin, log_bounds, misplaced_share
from consumer.kafka.placement import MAX_WARNINGS, Placement, home_of
from consumer.observability.metrics import Metrics, samples, total
from consumer.settings import KafkaSettings
from tests.stack.broker import delete
from tests.stack.services import Services

PARTITIONS = 3
KEY = b"c-1"


@pytest.fixture
async def kafka(stack: Services) -> AsyncIterator[KafkaSettings]:
    topics = tuple(f"test-{secrets.token_hex(6)}" for _ in range(2))
    settings = KafkaSettings(bootstrap_servers=stack.kafka, topics=topics)
    async with admin(settings) as client:
        for topic in topics:
            await client.create(topic, PARTITIONS, 1, {})
    yield settings
    await delete(stack.kafka, *topics)


def record(source: str | None, key: bytes | None = KEY, in_headers: bool = False) -> "ConsumerRecord[bytes, bytes]":
    value = b"\xff" if source is None or in_headers else json.dumps({"source": source}).encode()
    headers = (("ce_source", (source or "").encode()),) if in_headers else ()
    return ConsumerRecord("events", 0, 0, 0, 0, key, value, None, len(key or b""), len(value), headers)


def warned(records: Sequence["ConsumerRecord[bytes, bytes]"], partition: int) -> tuple[list[str], float]:
    """The sources that are warned of, and the records that are counted."""
    metrics = Metrics(["events"])
    placement = Placement(metrics)
    with capture_logs() as logs:
        for one in records:
            placement.check("events", partition, PARTITIONS, [one])
    counted = total(samples(metrics.registry), "conversation_misplaced_records_total", topic="events")
    assert all(line["topic"] == "events" and "murmur2_random" in line["remedy"] for line in logs)
    return [line["source"] for line in logs], counted


@pytest.mark.parametrize("partitions", [1, 3, 12])
def test_a_key_is_at_home_where_the_default_partitioner_puts_it(partitions: int) -> None:
    numbers = list(range(partitions))

    for key in (b"", b"c-1", "ж漢🎉".encode(), b"x" * 800):
        assert home_of(key, partitions) == DefaultPartitioner()(key, numbers, numbers)


def test_one_warning_is_given_for_each_source() -> None:
    elsewhere = (home_of(KEY, PARTITIONS) + 1) % PARTITIONS
    records = [record("a"), record("a"), record("b"), record("c", in_headers=True), record(None), record("b")]

    assert warned(records, elsewhere) == (["a", "b", "c", ""], 6)


def test_records_at_home_or_without_a_key_are_not_warned_of() -> None:
    home = home_of(KEY, PARTITIONS)

    assert warned([record("a"), record("a", None)], home) == ([], 0)


def test_warnings_are_bounded_where_sources_are_not() -> None:
    elsewhere = (home_of(KEY, PARTITIONS) + 1) % PARTITIONS

    sources, counted = warned([record(f"source-{number}") for number in range(MAX_WARNINGS + 50)], elsewhere)

    assert (len(sources), counted) == (MAX_WARNINGS, MAX_WARNINGS + 50)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"null",
        b"\xff",
        b'{"source":"\xff"}',
        b'{"source":"\xed\xa0\x80"}',
        b'{"source":"\\ud800"}',
        b'{"x":' * 9999,
    ],
)
def test_a_misplaced_record_whose_source_cannot_be_read_is_counted_and_ends_nothing(value: bytes | None) -> None:
    elsewhere = (home_of(KEY, PARTITIONS) + 1) % PARTITIONS

    assert warned([replace(record("a"), value=value)], elsewhere) == ([""], 1)


async def test_the_share_of_misplaced_records_is_read_off_the_end_of_the_log(kafka: KafkaSettings) -> None:
    topic, other = kafka.topics
    elsewhere = (home_of(KEY, PARTITIONS) + 1) % PARTITIONS
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers) as producer:
        for _ in range(20):
            await producer.send_and_wait(topic, b"old", KEY, partition=elsewhere)
        for _ in range(8):
            await producer.send_and_wait(topic, b"right", KEY)
        await producer.send_and_wait(topic, b"right", None, partition=elsewhere)
        await producer.send_and_wait(topic, b"wrong", KEY, partition=elsewhere)

    async with asyncio.timeout(10):  # where partitions are read one by one, each waits for the fetch before it
        shares = await misplaced_share(kafka, sample=5)

    assert shares == {topic: (4, 10), other: (0, 0)}


async def test_the_bounds_of_no_partitions_are_none(kafka: KafkaSettings) -> None:
    assert await log_bounds(kafka, []) == {}
