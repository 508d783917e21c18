"""Reads partitions up to where they end by now: for commands, outside of any group."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumer.errors import UnavailableError
from consumer.kafka.client import running
from consumer.kafka.connection import connection_arguments
from consumer.settings import KafkaSettings

POLL_MS = 500
SILENT_POLLS = 120
"""How many polls in turn may bring nothing of what the log has: a minute. A client whose brokers are away is silent."""


def reader(settings: KafkaSettings) -> AbstractAsyncContextManager[AIOKafkaConsumer]:
    """A consumer outside of any group. Where the log has lost what is to be read, it goes on at the start."""
    client = AIOKafkaConsumer(
        **connection_arguments(settings), isolation_level="read_committed", auto_offset_reset="earliest"
    )
    return running(client, settings)


async def records_before(
    client: AIOKafkaConsumer, tp: TopicPartition, end: int
) -> AsyncIterator[tuple[list["ConsumerRecord[bytes, bytes]"], int]]:
    """The records of an assigned partition from the client's position on, each time with the position after them.

    Raises `UnavailableError` where none come for long, and Kafka's errors.
    """
    silent, at = 0, await client.position(tp)
    while at < end:
        found = (await client.getmany(tp, timeout_ms=POLL_MS)).get(tp, [])
        before, at = at, await client.position(tp)
        yield [record for record in found if record.offset < end], min(end, at)
        silent = 0 if at != before else silent + 1
        if silent > SILENT_POLLS:
            raise UnavailableError(
                f"nothing comes of {tp.topic}[{tp.partition}] from offset {at} on: check the brokers"
            )
