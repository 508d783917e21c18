"""A partition worker on a log in a list, a database in memory and a dead-letter topic that fails at times."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from random import Random
from typing import Any

from consumer.decoding import as_record
from consumer.errors import PartitionStoppedError, UnavailableError
from consumer.lifecycle.model import Event
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.records import DeadLetter, Record
from consumer.service.ports import Decided, Lost
from consumer.service.service import ConversationService
from consumer.settings import WorkerSettings
from consumer.worker import PartitionWorker
from tests.fakes import MemoryStore
from tests.memory_log import MemoryLog

NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)
SETTINGS = WorkerSettings(outage_backoff_max_seconds=0.01)


class FakeLog(MemoryLog):
    """A partition of a log in a list, given up once everything is applied; waits take no time."""

    def __init__(self, values: Sequence[bytes], first: int = 0) -> None:
        super().__init__(PLACE, first)
        self.append((json.loads(value)["subject"].encode() if value[:1] == b"{" else b"?", value) for value in values)
        self.taken: list[int] = []
        self.limits: list[int] = []
        self.applied_to: list[int] = []
        self.unreadable: int | None = None
        self.waits: list[float] = []
        self.idle_waits: list[float] = []
        self.sought: list[int] = []
        self.paused = 0
        self.on_idle: Callable[[], None] | None = None
        self.on_wait: Callable[[], None] = lambda: None

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        if self.position == self.unreadable:
            raise PartitionStoppedError("cannot be read")
        self.limits.append(limit)
        taken = await super().take(limit, seconds)
        self.taken += [len(taken)] if taken else []
        return taken

    def seek(self, offset: int) -> None:
        self.sought.append(offset)
        super().seek(offset)

    def pause(self) -> None:
        self.paused += 1

    async def _wait(self, seconds: float) -> None:
        self.idle_waits.append(seconds)
        if self.on_idle is None:
            await self.revoked.wait()
        else:
            self.on_idle()

    def applied(self, next_offset: int) -> None:
        self.applied_to.append(next_offset)
        if next_offset == self.end and self.on_idle is None:
            self.revoke()

    async def revoked_within(self, seconds: float) -> bool:
        self.waits.append(seconds)
        self.on_wait()
        await asyncio.sleep(0)
        return self.is_revoked()


class Letters:
    """A dead-letter topic that fails the first times."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.sent: list[DeadLetter] = []

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        if self.failures:
            self.failures -= 1
            raise UnavailableError("no dead-letter topic")
        self.sent += letters


class Troubled(MemoryStore):
    """Before each save, `trouble` may raise."""

    def __init__(self, trouble: Callable[[Decided], None]) -> None:
        super().__init__()
        self.trouble = trouble

    async def save(self, decided: Decided, *rest: Any) -> Lost:
        self.trouble(decided)
        return await super().save(decided, *rest)


def fails(times: int, error: Exception) -> Callable[[Decided], None]:
    """Trouble that is over after so many saves."""
    left = times

    def trouble(_: Decided) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            raise error

    return trouble


def encoded(*events: Event) -> list[bytes]:
    return [json.dumps(as_record(event)).encode() for event in events]


@asynccontextmanager
async def worker(
    log: FakeLog, store: MemoryStore, letters: Letters, settings: WorkerSettings = SETTINGS, rng: Random | None = None
) -> AsyncIterator[tuple[Health, Awaitable[None]]]:
    health, metrics = Health(), Metrics(["events"])
    service = ConversationService(store, metrics=metrics)
    running = asyncio.create_task(
        PartitionWorker(log, service, store, letters, settings=settings, metrics=metrics, health=health, rng=rng).run()
    )
    async with asyncio.timeout(60):
        yield health, running
        log.revoke()
        await running
