"""Sends records and dead letters."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from consumer.errors import PartitionStoppedError, UnavailableError
from consumer.kafka.client import started, stop
from consumer.kafka.connection import connection_arguments
from consumer.kafka.errors import classified
from consumer.records import DeadLetter, Record
from consumer.settings import KafkaSettings

HEADER = "__consumer.errors."
FACTS = ("topic", "partition", "offset", "timestamp", "group", "reason", "error")
"""The headers that a dead letter gets after its own, in their order."""
INFLATED = 64
"""How many times its compressed size a record may have."""


class KafkaProducer:
    """Sends records; every send is awaited until all replicas have it.

    A client that has failed is replaced. An idempotent one that gave a batch up has left a gap in its sequence numbers:
    the broker refuses everything that it sends after that.
    """

    def __init__(self, new_client: Callable[[], AIOKafkaProducer], settings: KafkaSettings) -> None:
        self._new_client = new_client
        self._settings = settings
        self._client: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._replaced: set[asyncio.Task[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        settings: KafkaSettings,
        max_record_bytes: int = 2**20,
        client: Callable[..., AIOKafkaProducer] = AIOKafkaProducer,
    ) -> AsyncIterator["KafkaProducer"]:
        """`max_record_bytes`: what the topics sent to allow, if it is more than Kafka's default."""
        new_client = partial(
            client,
            **connection_arguments(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,
            # Brokers limit what is compressed, this client what is not.
            compression_type="gzip",
            max_request_size=INFLATED * max_record_bytes,
        )
        producer = cls(new_client, settings)
        try:
            await producer._started()
            yield producer
        finally:
            await producer._stop()

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._client is None:
                self._client = await started(self._new_client(), self._settings)
            return self._client

    @asynccontextmanager
    async def _sending(self) -> AsyncIterator[AIOKafkaProducer]:
        """A client to send with; replaced if that fails. Raises `UnavailableError`."""
        client = await self._started()
        try:
            with classified():
                yield client
        except UnavailableError:
            if self._client is client:
                self._replace(client)
            raise

    def _replace(self, client: AIOKafkaProducer) -> None:
        """By another one with the next send. What others have sent with this one is acknowledged, or fails too."""
        self._client = None
        ending = asyncio.create_task(_ended(client))
        self._replaced.add(ending)
        ending.add_done_callback(self._replaced.discard)

    async def _stop(self) -> None:
        for ending in self._replaced:
            ending.cancel()
        await asyncio.gather(*self._replaced, return_exceptions=True)
        if self._client is not None:
            await stop(self._client)

    async def publish(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Sends (key, value) pairs, partitioned by murmur2 of the key. Raises `UnavailableError`."""
        async with self._sending() as client:
            sent = [await _send(client, topic, key, value) for key, value in records]
            await acknowledged(sent)

    async def send_records(self, records: Iterable[Record]) -> None:
        """Sends records to their topics as they are, partitioned by murmur2 of the key. Raises `UnavailableError`."""
        async with self._sending() as client:
            sent = [await _send(client, record.topic, record.key, record.value, record.headers) for record in records]
            await acknowledged(sent)

    async def send(self, dead_letters: Sequence[DeadLetter]) -> None:
        """See `worker.DeadLetters`."""
        async with self._sending() as client:
            try:
                sent = [await self._enqueue(client, dead_letter) for dead_letter in dead_letters]
                await acknowledged(sent)
            except MessageSizeTooLargeError as error:
                topic = self._settings.dead_letter_topic
                raise PartitionStoppedError(
                    f"a dead letter does not fit: raise max.message.bytes of {topic}"
                ) from error

    async def _enqueue(self, client: AIOKafkaProducer, dead_letter: DeadLetter) -> Any:
        """The future of its acknowledgement."""
        record = dead_letter.record
        place = (record.topic, record.partition, record.offset, record.timestamp)
        facts = zip(FACTS, (*place, self._settings.group_id, dead_letter.reason, dead_letter.error), strict=True)
        headers = [*record.headers, *((HEADER + name, str(fact).encode()) for name, fact in facts)]
        return await _send(client, self._settings.dead_letter_topic, record.key, record.value, headers)


async def _ended(client: AIOKafkaProducer) -> None:
    """Takes as long as the acknowledgements: a client whose end is cut short keeps its connections."""
    with suppress(KafkaError):
        await client.stop()


async def _send(
    client: AIOKafkaProducer,
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes]] = (),
) -> Any:
    """The future of its acknowledgement."""
    if key is not None or value is not None:
        return await client.send(topic, value, key, headers=list(headers))
    # `send` refuses a record without key and value; a batch of one does not.
    batch = client.create_batch()
    batch.append(key=None, value=None, timestamp=None, headers=list(headers))
    partitions = await client.partitions_for(topic)
    return await client.send_batch(batch, topic, partition=min(partitions))


async def acknowledged(sent: Iterable[Awaitable[Any]]) -> None:
    """Waits for all, so that none goes on behind an error, and raises the first one, which says what is wrong."""
    for result in await asyncio.gather(*sent, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result
