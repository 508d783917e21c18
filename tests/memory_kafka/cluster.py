"""What the brokers have: topics, records, committed offsets; and what is wrong with them."""

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

if TYPE_CHECKING:
    from tests.memory_kafka.consumer import MemoryConsumer

Headers = Sequence[tuple[str, bytes]]
NO_HEADERS: Headers = ()
OVERHEAD = 70
"""About what a record of a batch of its own takes beside its key, value and headers, in bytes."""


@dataclass(frozen=True, slots=True)
class Unreadable:
    """In the place of a record, what the client raises where it tries to read it."""

    error: Exception


Entry: TypeAlias = "ConsumerRecord[bytes, bytes] | Unreadable | None"
"""None is a commit marker: an offset without a record."""


class MemoryPartition:
    """The log of one partition: `first` is the first offset that retention has left, `end` the one after the last."""

    def __init__(self, tp: TopicPartition, max_bytes: int) -> None:
        self.tp = tp
        self.max_bytes = max_bytes
        self.first = 0
        self._entries: list[Entry] = []

    @property
    def end(self) -> int:
        return len(self._entries)

    def append(self, key: bytes | None, value: bytes | None, headers: Headers, timestamp: int) -> int:
        """The offset of the new record. Raises `MessageSizeTooLargeError`."""
        sizes = [-1 if part is None else len(part) for part in (key, value)]
        if size_of(key, value, headers) > self.max_bytes:
            raise MessageSizeTooLargeError
        self._entries.append(ConsumerRecord(*self.tp, self.end, timestamp, 0, key, value, None, *sizes, tuple(headers)))
        return self.end - 1

    def mark(self, entry: Unreadable | None) -> None:
        self._entries.append(entry)

    def entries(self, offset: int, limit: int) -> Sequence[tuple[int, Entry]]:
        return list(enumerate(self._entries[offset : offset + limit], offset))

    def records(self) -> "list[ConsumerRecord[bytes, bytes]]":
        return [entry for entry in self._entries[self.first :] if isinstance(entry, ConsumerRecord)]


class MemoryCluster:
    """Topics, committed offsets, and what is wrong with them.

    `pace` gives the seconds that the next request takes; a fetch returns at most `fetch_records` of a partition.
    """

    def __init__(self, pace: Callable[[], float] = lambda: 0.0, fetch_records: int = 500) -> None:
        self.committed: dict[tuple[str, TopicPartition], int] = {}
        self.consumers: list[MemoryConsumer] = []
        self.fetch_records = fetch_records
        self._pace = pace
        self._topics: dict[str, list[MemoryPartition]] = {}
        self._faults: defaultdict[str, deque[Exception]] = defaultdict(deque)
        self._up = asyncio.Event()
        self._up.set()

    async def id(self, _: object = None) -> str:
        return "cluster"

    def create(self, topic: str, partitions: int = 1, max_bytes: int = 2**20) -> None:
        self._topics[topic] = [MemoryPartition(TopicPartition(topic, n), max_bytes) for n in range(partitions)]

    def partitions(self, topic: str) -> set[int] | None:
        return set(range(len(self._topics[topic]))) if topic in self._topics else None

    def log(self, tp: TopicPartition) -> MemoryPartition:
        log: MemoryPartition = self._topics[tp.topic][tp.partition]
        return log

    def append(
        self,
        tp: TopicPartition,
        value: bytes | None,
        key: bytes | None = None,
        headers: Headers = NO_HEADERS,
        timestamp: int | None = None,
    ) -> int:
        """The offset of the new record."""
        now = round(1000 * asyncio.get_running_loop().time())
        offset = self.log(tp).append(key, value, headers, now if timestamp is None else timestamp)
        self._changed()
        return offset

    def append_marker(self, tp: TopicPartition) -> None:
        """The end of a transaction: an offset without a record."""
        self.log(tp).mark(None)
        self._changed()

    def append_unreadable(self, tp: TopicPartition, error: Exception) -> None:
        """A record at which the client raises `error`."""
        self.log(tp).mark(Unreadable(error))
        self._changed()

    def delete_before(self, tp: TopicPartition, offset: int) -> None:
        """Retention: the first offset is this one from now on."""
        self.log(tp).first = offset
        self._changed()

    def fail(self) -> None:
        """No broker answers until `heal`."""
        self._up.clear()

    def heal(self) -> None:
        self._up.set()

    @property
    def is_up(self) -> bool:
        return self._up.is_set()

    def raise_next(self, call: str, error: Exception) -> None:
        """The next call of a client's method of that name raises; `send`: the future of the acknowledgement does."""
        self._faults[call].append(error)

    async def answer(self, call: str, seconds: float = math.inf) -> None:
        """The way to a broker and back. Raises `KafkaTimeoutError` if it takes longer than so many seconds."""
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                await self._up.wait()
                await asyncio.sleep(self._pace())
        except TimeoutError:
            raise KafkaTimeoutError(f"no answer to {call} in {seconds} s") from None
        self.check(call)

    def check(self, call: str) -> None:
        if self._faults[call]:
            raise self._faults[call].popleft()

    def _changed(self) -> None:
        for consumer in self.consumers:
            consumer.wake()


def size_of(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    return OVERHEAD + len(key or b"") + len(value or b"") + sum(len(name) + len(text) for name, text in headers)
