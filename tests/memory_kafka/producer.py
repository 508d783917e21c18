"""The producer, and the batch of one record that it can send."""

import asyncio
import contextlib
from dataclasses import dataclass
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)
from aiokafka.structs import RecordMetadata

from consumer.kafka.placement import home_of
from tests.memory_kafka.cluster import NO_HEADERS, Headers, MemoryCluster, size_of


@dataclass(slots=True)
class MemoryBatch:
    """`BatchBuilder` of one record."""

    key: bytes | None = None
    value: bytes | None = None
    headers: Headers = NO_HEADERS

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self.key, self.value, self.headers = key, value, headers


class MemoryProducer:
    """`AIOKafkaProducer` as `KafkaProducer` uses it: idempotent, so it retries without limit and keeps the order."""

    def __init__(self, cluster: MemoryCluster, **arguments: Any) -> None:
        self.arguments = arguments
        self._cluster = cluster
        self._max_bytes = arguments.get("max_request_size", 2**20)
        self._request_seconds = arguments.get("request_timeout_ms", 40_000) / 1000
        self._sent: asyncio.Queue[tuple[TopicPartition, MemoryBatch, asyncio.Future[RecordMetadata]]] = asyncio.Queue()
        self._sending: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        if not self._cluster.is_up:
            raise KafkaConnectionError("Unable to bootstrap")
        await self._cluster.answer("start")
        self._sending = asyncio.create_task(self._send_forever())

    async def stop(self) -> None:
        """Waits for the acknowledgements of everything sent, without limit."""
        self._closed = True
        if self._sending is None:
            return
        try:
            await self._sent.join()
        finally:
            self._sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sending

    async def partitions_for(self, topic: str) -> set[int]:
        if (partitions := self._cluster.partitions(topic)) is None:
            await asyncio.sleep(self._request_seconds)
            raise UnknownTopicOrPartitionError
        return partitions

    async def send(
        self,
        topic: str,
        value: bytes | None = None,
        key: bytes | None = None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Headers = NO_HEADERS,
    ) -> "asyncio.Future[RecordMetadata]":
        assert value is not None or key is not None, "Need at least one: key or value"
        partitions = await self.partitions_for(topic)
        if size_of(key, value, headers) > self._max_bytes:
            raise MessageSizeTooLargeError
        if partition is None:
            partition = min(partitions) if key is None else home_of(key, len(partitions))
        return self._enqueue(TopicPartition(topic, partition), MemoryBatch(key, value, headers))

    def create_batch(self) -> MemoryBatch:
        return MemoryBatch()

    async def send_batch(self, batch: MemoryBatch, topic: str, *, partition: int) -> "asyncio.Future[RecordMetadata]":
        await self.partitions_for(topic)
        return self._enqueue(TopicPartition(topic, partition), batch)

    def _enqueue(self, tp: TopicPartition, batch: MemoryBatch) -> "asyncio.Future[RecordMetadata]":
        if self._closed:
            raise ProducerClosed
        acknowledged: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        self._sent.put_nowait((tp, batch, acknowledged))
        return acknowledged

    async def _send_forever(self) -> None:
        while True:
            tp, batch, acknowledged = await self._sent.get()
            try:
                await self._cluster.answer("send")
                offset = self._cluster.append(tp, batch.value, batch.key, batch.headers)
            except Exception as error:
                if not acknowledged.done():
                    acknowledged.set_exception(error)
            else:
                if not acknowledged.done():
                    acknowledged.set_result(RecordMetadata(*tp, tp, offset, None, 0, 0))
            self._sent.task_done()
