"""One assigned partition: its state, its buffer, its position, its lag."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from enum import Enum, auto

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumer.errors import PartitionStoppedError
from consumer.kafka.errors import classified
from consumer.observability.lag import Lag
from consumer.offsets import Partition
from consumer.records import Record
from consumer.settings import WorkerSettings

STALL_SECONDS = 60.0
"""How long a partition may be behind without a record arriving before the process ends itself: aiokafka can stall
silently after a broker restart, and a restart of ours mends it."""


class State(Enum):
    """What an assigned partition does. `seek` leads to FETCHING from every state but REVOKED, which is the last."""

    PAUSED = auto()
    """Before the first `seek`, and while the worker waits for an outage to end: until the next `take`."""
    FETCHING = auto()
    """Records are fetched as long as the buffer has room."""
    FAILED = auto()
    """The record after the buffered ones cannot be obtained."""
    REVOKED = auto()
    """The partition is another replica's, or the process is stopping."""


class AssignedPartition:
    """See `worker.PartitionLog`: one partition, from its assignment to its revocation."""

    def __init__(
        self,
        client: AIOKafkaConsumer,
        partition: Partition,
        cluster: Callable[[], Awaitable[str]],
        settings: WorkerSettings,
    ) -> None:
        self.partition = partition
        self.next_offset: int | None = None
        self.log_end = 0
        self._fetched_to = 0
        self._read_to = 0
        self._clock = asyncio.get_running_loop().time
        self._waiting_since = self._clock()
        self._client = client
        self._tp = TopicPartition(partition.topic, partition.number)
        self._cluster = cluster
        self._settings = settings
        self._buffer: list[Record] = []
        self._buffered_bytes = 0
        self._oldest: int | None = None
        self._state = State.PAUSED
        self._failure = ""
        self._records_available = asyncio.Event()
        self._revoked = asyncio.Event()
        client.pause(self._tp)

    async def cluster_id(self) -> str:
        return await self._cluster()

    async def bounds(self) -> tuple[int, int]:
        with classified():
            first = await self._client.beginning_offsets([self._tp])
            end = await self._client.end_offsets([self._tp])
        self.log_end = end[self._tp]
        return first[self._tp], end[self._tp]

    def seek(self, offset: int) -> None:
        self._buffer.clear()
        self._buffered_bytes = 0
        self._oldest = None
        self._enter(State.FETCHING)
        self.next_offset = offset
        self._fetch_from(offset)

    def refetch(self) -> None:
        """Has everything after the buffer fetched again: a failed poll may have dropped what it had fetched."""
        if self.next_offset is not None:
            self._fetch_from(self._fetched_to)

    def _fetch_from(self, offset: int) -> None:
        self._fetched_to = self._read_to = offset
        self._waiting_since = self._clock()
        if self._state is not State.REVOKED:
            self._client.seek(self._tp, offset)
            self._client.resume(self._tp)

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        self._enter(State.FETCHING, State.PAUSED)
        if self._state is State.FETCHING and not self._buffer:
            self._records_available.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._records_available.wait(), seconds)
        if self._state is State.REVOKED:
            return ()
        if self._buffer:
            return self._taken(limit)
        if self._state is State.FAILED:
            raise PartitionStoppedError(self._failure)
        return ()

    def _taken(self, limit: int) -> Sequence[Record]:
        taken = self._buffer[:limit]
        del self._buffer[:limit]
        self._buffered_bytes -= _size(taken)
        self._oldest = taken[0].timestamp
        return taken

    def is_revoked(self) -> bool:
        return self._state is State.REVOKED

    def applied(self, next_offset: int) -> None:
        self.next_offset = next_offset
        self._oldest = None
        self._waiting_since = self._clock()

    def pause(self) -> None:
        self._enter(State.PAUSED, State.FETCHING)

    async def revoked_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._revoked.wait(), seconds)
        return self.is_revoked()

    @property
    def wants_records(self) -> bool:
        """Whether it should be fetched: that is its state, and its buffer has room."""
        room = (
            len(self._buffer) < self._settings.max_buffered and self._buffered_bytes < self._settings.max_buffered_bytes
        )
        return self._state is State.FETCHING and self.next_offset is not None and room

    def append(self, records: Sequence["ConsumerRecord[bytes, bytes]"]) -> None:
        """Buffers what was fetched."""
        fetched = [to_record(record) for record in records]
        self._buffer += fetched
        self._buffered_bytes += _size(fetched)
        self._fetched_to = self._read_to = fetched[-1].offset + 1
        self._records_available.set()

    def fail(self, why: str) -> None:
        """The next record cannot be obtained: `take` says so once the buffer is empty."""
        self._enter(State.FAILED)
        self._failure = why
        self._records_available.set()

    def revoke(self) -> None:
        self._enter(State.REVOKED)
        self._revoked.set()
        self._records_available.set()

    def _enter(self, state: State, *only_from: State) -> None:
        """Changes the state; a revoked partition stays one."""
        if self._state is not State.REVOKED and (not only_from or self._state in only_from):
            self._state = state

    def lag(self) -> Lag | None:
        """Counts from the first record not yet applied; commit markers at the end of the log are no records."""
        if self.next_offset is None:
            return None
        oldest = self._oldest if self._oldest is not None else self._buffer[0].timestamp if self._buffer else None
        done = self.next_offset if oldest is not None else max(self.next_offset, self._read_to)
        age = 0.0 if oldest is None else time.time() - oldest / 1000
        behind = max(self.log_end, self._read_to) - done
        return Lag(self.partition.topic, self.partition.number, max(0, behind), max(0.0, age))

    def update_log_end(self, log_end: int, position: int | None) -> None:
        """Takes what the brokers say: the client itself learns the end of the log only from a fetch that works.

        `position` is past commit markers too; it may be outdated by now, so nothing is fetched by it.
        """
        self.log_end = log_end
        if position is not None and not self._buffer:
            self._read_to = max(self._read_to, position)

    @property
    def stalled(self) -> bool:
        """Behind and waiting for records, but none come."""
        waiting = self.wants_records and not self._buffer and self._oldest is None
        return waiting and self.log_end > self._read_to and self._clock() - self._waiting_since > STALL_SECONDS


def to_record(record: "ConsumerRecord[bytes, bytes]") -> Record:
    return Record(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers)
    )


def _size(records: Sequence[Record]) -> int:
    """Bytes of keys, values and headers. Most records have no headers."""
    bodies = sum([len(record.value or b"") + len(record.key or b"") for record in records])
    headers = [header for record in records if record.headers for header in record.headers]
    return bodies + sum([len(name) + len(content or b"") for name, content in headers])
