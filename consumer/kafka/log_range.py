"""A range of topics by time, as it lies in the log now."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin
from consumer.kafka.client import classified, connection_arguments, running
from consumer.kafka.partition import to_record
from consumer.records import Record
from consumer.settings import KafkaSettings

POLL_MS = 500


class RangePart(NamedTuple):
    """Records of one partition, in their order. `passed` offsets of `total` have been read with them."""

    records: list[Record]
    passed: int
    total: int


async def read_range(settings: KafkaSettings, since: datetime, until: datetime) -> AsyncIterator[RangePart]:
    """The committed records of the input topics: from the first of `since` on, up to the first of `until`.

    Times are those of the records. Raises `ConfigurationError` where a topic is missing, and `UnavailableError`.
    """
    async with admin(settings) as brokers:
        there = await brokers.topics()
    if missing := [topic for topic in settings.topics if topic not in there]:
        raise ConfigurationError(
            f"topic {missing[0]} does not exist: run `conversation-consumer topics`, or check CONSUMER_KAFKA__TOPICS"
        )
    partitions = [TopicPartition(topic, number) for topic in settings.topics for number in range(there[topic])]
    reader = AIOKafkaConsumer(**connection_arguments(settings), isolation_level="read_committed")
    async with running(reader, settings) as client:
        with classified():
            client.assign(partitions)
            ends = await client.end_offsets(partitions)
            first, last = await _offsets(client, ends, since), await _offsets(client, ends, until)
            total, passed = sum(last[tp] - first[tp] for tp in partitions), 0
            for tp in partitions:
                client.seek(tp, first[tp])
            client.pause(*partitions)
            for tp in partitions:
                client.resume(tp)
                async for records, at in _records(client, tp, last[tp]):
                    yield RangePart(records, passed + at - first[tp], total)
                client.pause(tp)
                passed += last[tp] - first[tp]


async def _offsets(
    client: AIOKafkaConsumer, ends: dict[TopicPartition, int], at: datetime
) -> dict[TopicPartition, int]:
    """Partition -> offset of its first record of `at` or later; its end if there is none."""
    found = await client.offsets_for_times(dict.fromkeys(ends, max(0, int(at.timestamp() * 1000))))
    return {tp: min(end, offset.offset) if (offset := found[tp]) else end for tp, end in ends.items()}


async def _records(client: AIOKafkaConsumer, tp: TopicPartition, end: int) -> AsyncIterator[tuple[list[Record], int]]:
    """The records of a partition before `end`, with the position after them."""
    while await client.position(tp) < end:
        found = (await client.getmany(tp, timeout_ms=POLL_MS)).get(tp, [])
        yield [to_record(record) for record in found if record.offset < end], min(end, await client.position(tp))
