"""Sends records and dead letters."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from consumer.errors import PartitionStoppedError
from consumer.kafka.client import STOP_SECONDS, classified, connection_arguments, start
from consumer.records import DeadLetter, Record
from consumer.settings import KafkaSettings

HEADER = "__consumer.errors."
FACTS = ("topic", "partition", "offset", "timestamp", "group", "reason", "error")
"""The headers that a dead letter gets after its own, in their order."""
INFLATED = 64
"""How many times its compressed size a record may have."""


class KafkaProducer:
    """Sends records; every send is awaited until all replicas have it."""

    def __init__(self, producer: AIOKafkaProducer, settings: KafkaSettings) -> None:
        self._producer = producer
        self._settings = settings

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: KafkaSettings,
        max_record_bytes: int = 2**20,
        client: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
    ) -> AsyncIterator["KafkaProducer"]:
        """`max_record_bytes`: what the topics sent to allow, if it is more than Kafka's default."""
        producer = client(
            **connection_arguments(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,
            # Brokers limit what is compressed, this client what is not.
            compression_type="gzip",
            max_request_size=INFLATED * max_record_bytes,
        )
        try:
            await start(producer, settings)
            yield cls(producer, settings)
        finally:
            with contextlib.suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def publish(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Sends (key, value) pairs, partitioned by murmur2 of the key. Raises `UnavailableError`."""
        with classified():
            sent = [await self._send(topic, key, value) for key, value in records]
            await asyncio.gather(*sent)

    async def send_records(self, records: Iterable[Record]) -> None:
        """Sends records to their topics as they are, partitioned by murmur2 of the key. Raises `UnavailableError`."""
        with classified():
            sent = [await self._send(record.topic, record.key, record.value, record.headers) for record in records]
            await asyncio.gather(*sent)

    async def send(self, dead_letters: Sequence[DeadLetter]) -> None:
        """See `worker.DeadLetters`."""
        with classified():
            try:
                sent = [await self._enqueue(dead_letter) for dead_letter in dead_letters]
                await asyncio.gather(*sent)
            except MessageSizeTooLargeError as error:
                topic = self._settings.dead_letter_topic
                raise PartitionStoppedError(
                    f"a dead letter does not fit: raise max.message.bytes of {topic}"
                ) from error

    async def _enqueue(self, dead_letter: DeadLetter) -> Any:
        """The future of its acknowledgement."""
        record = dead_letter.record
        place = (record.topic, record.partition, record.offset, record.timestamp)
        facts = zip(FACTS, (*place, self._settings.group_id, dead_letter.reason, dead_letter.error), strict=True)
        headers = [*record.headers, *((HEADER + name, str(fact).encode()) for name, fact in facts)]
        return await self._send(self._settings.dead_letter_topic, record.key, record.value, headers)

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Any:
        if key is not None or value is not None:
            return await self._producer.send(topic, value, key, headers=list(headers))
        # `send` refuses a record without key and value; a batch of one does not.
        batch = self._producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=list(headers))
        partitions = await self._producer.partitions_for(topic)
        return await self._producer.send_batch(batch, topic, partition=min(partitions))
