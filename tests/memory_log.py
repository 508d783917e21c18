"""Partitions of the log in a list; `tests/contract/test_partition_log.py` holds `MemoryLog` to the real one."""

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress

from consumer.offsets import Partition
from consumer.records import Record


class MemoryLog:
    """See `worker.PartitionLog`."""

    def __init__(self, partition: Partition, first: int = 0) -> None:
        self.partition = partition
        self.records: list[Record] = []
        self.first = self.end = self.position = first
        self.revoked = asyncio.Event()
        self._changed = asyncio.Event()

    def append(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Takes (key, value) pairs at its end."""
        for key, value in records:
            self.records.append(Record(self.partition.topic, self.partition.number, self.end, 0, key, value))
            self.end += 1
        self._changed.set()

    def revoke(self) -> None:
        self.revoked.set()
        self._changed.set()

    async def cluster_id(self) -> str:
        return "cluster"

    async def bounds(self) -> tuple[int, int]:
        return self.first, self.end

    def seek(self, offset: int) -> None:
        self.position = offset

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        if not self._next(limit):
            await self._wait(seconds)
        taken = self._next(limit)
        if taken:
            self.position = taken[-1].offset + 1
        return taken

    def is_revoked(self) -> bool:
        return self.revoked.is_set()

    def applied(self, next_offset: int) -> None:
        pass

    def pause(self) -> None:
        pass

    async def revoked_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.revoked.wait(), seconds)
        return self.is_revoked()

    def _next(self, limit: int) -> list[Record]:
        if self.is_revoked():
            return []
        return self.records[max(0, self.position - self.first) :][:limit]

    async def _wait(self, seconds: float) -> None:
        """Until there are records, the partition is revoked, or the time is over."""
        self._changed.clear()
        if not self.is_revoked():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), seconds)


class FiniteLog:
    """See `worker.PartitionLog`: given up once all of it is taken."""

    def __init__(self, partition: Partition, records: Sequence[Record]) -> None:
        self.partition = partition
        self.records = records
        self.position = 0

    async def cluster_id(self) -> str:
        return "cluster"

    async def bounds(self) -> tuple[int, int]:
        return 0, len(self.records)

    def seek(self, offset: int) -> None:
        self.position = offset

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        taken = self.records[self.position : self.position + limit]
        self.position += len(taken)
        return taken

    def is_revoked(self) -> bool:
        return self.position >= len(self.records)

    def applied(self, next_offset: int) -> None:
        pass

    def pause(self) -> None:
        pass

    async def revoked_within(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return False
