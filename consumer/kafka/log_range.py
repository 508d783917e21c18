"""A range of topics by time, as it lies in the log now."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin
from consumer.kafka.errors import classified
from consumer.kafka.partition import to_record
from consumer.kafka.reading import reader, records_before
from consumer.records import Record
from consumer.settings import KafkaSettings


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
    async with reader(settings) as client:
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
                async for records, at in records_before(client, tp, last[tp]):
                    yield RangePart([to_record(record) for record in records], passed + at - first[tp], total)
                client.pause(tp)
                passed += last[tp] - first[tp]


async def _offsets(
    client: AIOKafkaConsumer, ends: dict[TopicPartition, int], at: datetime
) -> dict[TopicPartition, int]:
    """Partition -> offset of its first record of `at` or later; its end if there is none."""
    found = await client.offsets_for_times(dict.fromkeys(ends, max(0, int(at.timestamp() * 1000))))
    return {tp: min(end, offset.offset) if (offset := found[tp]) else end for tp, end in ends.items()}
