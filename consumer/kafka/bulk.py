"""Publishes many records of one topic at once: batches for each partition instead of a call for each record."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError

from consumer.errors import UnavailableError
from consumer.kafka.client import STOP_SECONDS, running, started
from consumer.kafka.connection import connection_arguments
from consumer.kafka.errors import classified
from consumer.kafka.placement import home_of
from consumer.kafka.producer import KafkaProducer, acknowledged
from consumer.settings import KafkaSettings

MAX_BATCH_BYTES = 512 * 1024
OVERHEAD_BYTES = 1024
TICK_BATCH_BYTES = 64 * 1024
"""Before compression, which makes a tenth of it: it fits wherever an event does."""
KeyAndValue = tuple[bytes, bytes]


class BulkProducer:
    """Publishes to one topic, partitioned by murmur2 of the key. The records of a key keep their order.

    A producer that has failed is replaced: what it still holds may be sent late, so twice, but in order.
    """

    def __init__(self, settings: KafkaSettings, topic: str, max_message_bytes: int) -> None:
        self._settings = settings
        self._topic = topic
        self._batch_bytes = min(MAX_BATCH_BYTES, max_message_bytes - OVERHEAD_BYTES)
        self._producer: AIOKafkaProducer | None = None

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings, topic: str, max_message_bytes: int) -> AsyncIterator["BulkProducer"]:
        """`max_message_bytes`: the topic's `max.message.bytes`."""
        made = cls(settings, topic, max_message_bytes)
        try:
            yield made
        finally:
            await made._discard()

    async def publish(self, records: Sequence[KeyAndValue]) -> None:
        """Returns when all replicas have all records. Raises `UnavailableError`: then some may be published.

        Takes no longer than a request may: an idempotent producer itself would wait for its broker without limit.
        """
        try:
            producer = await self._started()
            with classified(), self._size_explained():
                async with asyncio.timeout(self._settings.request_timeout_seconds):
                    await self._publish_all(producer, records)
        except UnavailableError:
            await self._discard()
            raise

    @contextlib.contextmanager
    def _size_explained(self) -> Iterator[None]:
        try:
            yield
        except MessageSizeTooLargeError as error:
            raise UnavailableError(f"a transition does not fit: raise max.message.bytes of {self._topic}") from error

    async def _publish_all(self, producer: AIOKafkaProducer, records: Sequence[KeyAndValue]) -> None:
        partitions = len(await producer.partitions_for(self._topic))
        by_partition: dict[int, list[KeyAndValue]] = {}
        for record in records:
            by_partition.setdefault(home_of(record[0], partitions), []).append(record)
        await acknowledged(publish(producer, self._topic, number, some) for number, some in by_partition.items())

    async def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            producer = AIOKafkaProducer(
                **connection_arguments(self._settings),
                acks="all",
                enable_idempotence=True,
                compression_type="lz4",
                max_batch_size=self._batch_bytes,
                max_request_size=2 * MAX_BATCH_BYTES,
            )
            self._producer = await started(producer, self._settings, _abandon)
        return self._producer

    async def _discard(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            await _abandon(producer)


class TickProducer:
    """See `ticker.TickTopic`.

    It is not idempotent. An idempotent client keeps what a partition does not acknowledge for as long as that takes.
    Once it gives a batch up, the brokers refuse all that it sends. Here a batch fails after the time that a request
    may take, and is forgotten. A tick that is published twice has no further effect.
    """

    def __init__(self, producer: AIOKafkaProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings, topic: str) -> AsyncIterator["TickProducer"]:
        # An idempotent one is told at its start that it may not write; this one would be told with the first tick.
        async with KafkaProducer.open(settings):
            pass
        producer = AIOKafkaProducer(
            **connection_arguments(settings), acks="all", compression_type="lz4", max_batch_size=TICK_BATCH_BYTES
        )
        async with running(producer, settings, _abandon):
            yield cls(producer, topic)

    async def partitions(self) -> int:
        with classified():
            return len(await self._producer.partitions_for(self._topic))

    def partition_of(self, key: bytes, partitions: int) -> int:
        return home_of(key, partitions)

    async def publish(self, partition: int, ticks: Sequence[KeyAndValue]) -> None:
        with classified():
            await publish(self._producer, self._topic, partition, ticks)


async def publish(producer: AIOKafkaProducer, topic: str, partition: int, records: Sequence[KeyAndValue]) -> None:
    """One batch after the other: none is sent unless the one before it is acknowledged. Raises Kafka's errors."""
    batch = producer.create_batch()
    for key, value in records:
        if batch.append(timestamp=None, key=key, value=value) is None:
            await (await producer.send_batch(batch, topic, partition=partition))
            batch = producer.create_batch()
            batch.append(timestamp=None, key=key, value=value)  # an empty batch takes a record of any size
    await (await producer.send_batch(batch, topic, partition=partition))


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Ends a producer without its `stop`, which waits without limit for what no broker acknowledges."""
    producer._closed, sender = True, producer._sender  # noqa: SLF001 - there is no public way
    if sender is not None and (sending := sender.sender_task):
        sending.cancel()
        await asyncio.wait([sending], timeout=STOP_SECONDS)
    await producer.client.close()
