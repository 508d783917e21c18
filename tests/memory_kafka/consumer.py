"""The consumer of a group, with its fetches ahead of `getmany`."""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from aiokafka import ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalStateError,
    KafkaConnectionError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from tests.memory_kafka.cluster import Entry, MemoryCluster, Unreadable

Records: TypeAlias = "dict[TopicPartition, list[ConsumerRecord[bytes, bytes]]]"


class _Fetched:
    """What a fetch returned of a partition; `next_offset` is the one after what is read of it."""

    def __init__(self, next_offset: int, entries: Iterable[tuple[int, Entry]]) -> None:
        self.next_offset = next_offset
        self._entries = deque(entries)

    def read(self, limit: float) -> "list[ConsumerRecord[bytes, bytes]]":
        """Raises the error of an entry that cannot be read; nothing after it is read any more."""
        records: list[ConsumerRecord[bytes, bytes]] = []
        while self._entries and len(records) < limit:
            offset, entry = self._entries.popleft()
            if isinstance(entry, Unreadable):
                self._entries.clear()
                raise entry.error
            self.next_offset = offset + 1
            if entry is not None:
                records.append(entry)
        return records

    def has_more(self) -> bool:
        return bool(self._entries)


class _Place:
    """Where the client is in an assigned partition."""

    def __init__(self) -> None:
        self.position: int | None = None
        self.paused = False
        self.positioned = asyncio.Event()

    def go_to(self, offset: int) -> None:
        self.position = offset
        self.positioned.set()


class MemoryConsumer:
    """`AIOKafkaConsumer` as `KafkaSource` uses it: in a group, `auto_offset_reset="none"`, no auto-commit.

    A group that rebalances calls `revoke`, then `assign`; `start` ends with the first `assign`.
    """

    def __init__(self, cluster: MemoryCluster, **arguments: Any) -> None:
        self.arguments = arguments
        self.listener_errors: list[Exception] = []
        cluster.consumers.append(self)
        self._cluster = cluster
        self._group: str = arguments["group_id"]
        self._request_seconds = arguments.get("request_timeout_ms", 40_000) / 1000
        self._listener: ConsumerRebalanceListener = None
        self._places: dict[TopicPartition, _Place] = {}
        self._joined = asyncio.Event()
        self._started = asyncio.Event()
        self._fetched: dict[TopicPartition, _Fetched | Exception] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._wanted = asyncio.Event()
        self._fetching: asyncio.Task[None] | None = None
        self._closed = False

    def subscribe(self, topics: Sequence[str], listener: ConsumerRebalanceListener) -> None:
        self.topics = topics
        self._listener = listener

    async def start(self) -> None:
        if not self._cluster.is_up:
            raise KafkaConnectionError("Unable to bootstrap")
        await self._cluster.answer("start")
        self._fetching = asyncio.create_task(self._fetch_forever())
        await self._started.wait()

    async def stop(self) -> None:
        self.crash()
        if self._fetching is not None:
            await asyncio.wait([self._fetching])

    def crash(self) -> None:
        """Ends at once, as its process does."""
        self._closed = True
        if self._fetching is not None:
            self._fetching.cancel()
        self._wake_waiters()

    @property
    def is_stopped(self) -> bool:
        return self._closed

    def stop_fetching(self) -> None:
        """As aiokafka does at times after a restart of the broker: silently."""
        if self._fetching is not None:
            self._fetching.cancel()

    async def revoke(self) -> None:
        """A rebalance begins: the listener gives everything up, and until `assign` nothing is returned."""
        self._joined.clear()
        await self._tell("on_partitions_revoked")

    async def assign(self, *tps: TopicPartition) -> None:
        """The rebalance ends with these partitions, all of them from anew."""
        if self._joined.is_set() or not self._places:
            await self.revoke()
        self._places = {tp: _Place() for tp in tps}
        self._fetched.clear()
        self._joined.set()
        self._started.set()
        self.wake()
        await self._tell("on_partitions_assigned")

    async def _tell(self, what: str) -> None:
        """As aiokafka does, which logs what a listener raises and goes on."""
        try:
            called: Awaitable[None] = getattr(self._listener, what)(self._places.keys())  # a set in a fixed order
            await called
        except Exception as error:
            self.listener_errors.append(error)

    def assignment(self) -> set[TopicPartition]:
        return set(self._places)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._place(tp).go_to(offset)
        self._fetched.pop(tp, None)
        self.wake()

    def pause(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._place(tp).paused = True

    def resume(self, *tps: TopicPartition) -> None:
        for tp in tps:
            self._place(tp).paused = False
        self.wake()

    async def position(self, tp: TopicPartition) -> int:
        self._cluster.check("position")
        place = self._place(tp)
        await place.positioned.wait()
        assert place.position is not None
        return place.position

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return self._cluster.partitions(topic)

    async def beginning_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._cluster.answer("beginning_offsets", self._request_seconds)
        return {tp: self._cluster.log(tp).first for tp in tps}

    async def end_offsets(self, tps: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        await self._cluster.answer("end_offsets", self._request_seconds)
        return {tp: self._cluster.log(tp).end for tp in tps}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Waits without limit while no broker answers."""
        for tp in offsets:
            self._place(tp)
        await self._cluster.answer("commit")
        self._cluster.committed |= {(self._group, tp): offset for tp, offset in offsets.items()}

    async def getmany(self, *tps: TopicPartition, timeout_ms: float = 0, max_records: int | None = None) -> Records:
        """Without partitions: from all of them. Waits for the end of a rebalance, however long that takes."""
        if self._closed:
            raise ConsumerStoppedError
        self._cluster.check("getmany")
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout_ms / 1000
        while True:
            await self._joined.wait()
            found = self._read(tps, max_records or math.inf)
            if found or clock() >= deadline or not await self._arrival(deadline - clock()):
                return found

    def _read(self, tps: Sequence[TopicPartition], limit: float) -> Records:
        """Raises what a fetch brought instead of records, unless another partition has brought some."""
        found: Records = {}
        for tp in [tp for tp in self._fetched if not tps or tp in tps]:
            if isinstance(error := self._fetched[tp], Exception):
                if not found:
                    self._drop(tp)
                    raise error
                break
            if records := self._read_one(tp, error, limit):
                found[tp] = records
                limit -= len(records)
            if limit == 0:
                break
        return found

    def _read_one(self, tp: TopicPartition, fetched: _Fetched, limit: float) -> "list[ConsumerRecord[bytes, bytes]]":
        """Nothing of a paused partition, or of one that has been sought elsewhere: that is fetched again."""
        place = self._places[tp]
        if place.paused or place.position != fetched.next_offset:
            self._drop(tp)
            return []
        records = fetched.read(limit)
        place.go_to(fetched.next_offset)
        if not fetched.has_more():
            self._drop(tp)
        return records

    def _drop(self, tp: TopicPartition) -> None:
        del self._fetched[tp]
        self.wake()

    async def _arrival(self, seconds: float) -> bool:
        """Waits for the next fetch that brings anything; whether one did in time."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait([waiter], timeout=seconds)
        finally:
            self._waiters.discard(waiter)
        return waiter.done() and not self._closed

    def _wake_waiters(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def wake(self) -> None:
        """Something may be there to fetch."""
        self._wanted.set()

    async def _fetch_forever(self) -> None:
        """Ahead of `getmany`, one fetch at a time; a partition that has been sought elsewhere meanwhile is left out."""
        while True:
            self._wanted.clear()
            places = self._places
            asked = {tp: place.position for tp, place in places.items() if self._is_fetched(tp, place)}
            if asked:
                await self._cluster.answer("fetch")
                for tp, offset in asked.items():
                    if places is self._places and places[tp].position == offset and tp not in self._fetched:
                        self._receive(tp, places[tp])
            await self._wanted.wait()

    def _is_fetched(self, tp: TopicPartition, place: _Place) -> bool:
        return tp not in self._fetched and (place.position is None or not place.paused)

    def _receive(self, tp: TopicPartition, place: _Place) -> None:
        log = self._cluster.log(tp)
        if place.position is None:
            committed = self._cluster.committed.get((self._group, tp))
            if committed is None:
                self._fetched[tp] = NoOffsetForPartitionError(tp)
            else:
                place.go_to(committed)
                self.wake()
        elif not log.first <= place.position <= log.end:
            self._fetched[tp] = OffsetOutOfRangeError({tp: place.position})
        elif entries := log.entries(place.position, self._cluster.fetch_records):
            self._fetched[tp] = _Fetched(place.position, entries)
        if tp in self._fetched:
            self._wake_waiters()

    def _place(self, tp: TopicPartition) -> _Place:
        if tp not in self._places:
            raise IllegalStateError(f"Partition {tp} is not assigned")
        return self._places[tp]
