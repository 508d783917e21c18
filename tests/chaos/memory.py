"""How much memory replicas take while a storm goes on."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import psutil

from tests.chaos.deployment import Member

INTERVAL_SECONDS = 0.5
MEBIBYTE = 1 << 20


def resident_bytes(pid: int) -> int:
    """0 where there is no such process."""
    with suppress(psutil.NoSuchProcess):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


@dataclass(frozen=True, slots=True)
class Memory:
    """The most that each replica took in the first half of a storm, and in the second, in MiB."""

    first: Sequence[int]
    second: Sequence[int]

    def __str__(self) -> str:
        return f"{max(self.first, default=0)} MiB, then {max(self.second, default=0)} MiB"


@dataclass(slots=True)
class Watch:
    """Samples so far: for each moment the resident bytes of every replica."""

    samples: list[list[int]] = field(default_factory=list)

    def result(self) -> Memory:
        middle = len(self.samples) // 2
        return Memory(_highest(self.samples[:middle]), _highest(self.samples[middle:]))


def _highest(samples: Iterable[list[int]]) -> list[int]:
    return [max(each) // MEBIBYTE for each in zip(*samples, strict=True)]


@asynccontextmanager
async def watched(members: Sequence[Member]) -> AsyncIterator[Watch]:
    """Looks at them twice a second."""
    watch = Watch()

    async def look() -> None:
        while True:
            watch.samples.append([resident_bytes(member.replica.process.pid) for member in members])
            await asyncio.sleep(INTERVAL_SECONDS)

    looking = asyncio.create_task(look())
    try:
        yield watch
    finally:
        looking.cancel()
