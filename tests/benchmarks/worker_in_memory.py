"""A worker in this process, its log in memory, on a real PostgreSQL."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import SecretStr

from consumer.commands.replica import collect_garbage_seldom
from consumer.decoding import encoded
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.postgres import migrations
from consumer.postgres.store import PostgresStore
from consumer.records import DeadLetter, Record
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings, WorkerSettings
from consumer.worker import PartitionWorker
from tests.benchmarks.workload import PACE, Workload
from tests.stack.database import new_database


class LogInMemory:
    """See `worker.PartitionLog`: given up once all of it is taken.

    After the `opening` it hands out so many records at a time, or as many as are wanted.
    """

    def __init__(self, records: Sequence[Record], opening: int = 0, at_a_time: int | None = None) -> None:
        self.partition = Partition("profile", "events", 0)
        self._records = records
        self._opening = opening
        self._at_a_time = at_a_time
        self._next = 0

    async def cluster_id(self) -> str:
        return "none"

    async def bounds(self) -> tuple[int, int]:
        return 0, len(self._records)

    def seek(self, offset: int) -> None:
        self._next = offset

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        if self._next < self._opening:
            limit = min(limit, self._opening - self._next)
        elif self._at_a_time:
            limit = min(limit, self._at_a_time)
        taken = self._records[self._next : self._next + limit]
        self._next += len(taken)
        return taken

    def is_revoked(self) -> bool:
        return self._next >= len(self._records)

    def applied(self, next_offset: int) -> None: ...

    def pause(self) -> None: ...

    async def revoked_within(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return False


class NoDeadLetters:
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(f"the workload holds no {letters[0].reason}")


def log_of(workload: Workload, at_a_time: int | None = None) -> LogInMemory:
    events = workload.all(datetime.now(UTC) - workload.total * PACE)
    records = [Record("events", 0, number, 0, *encoded(event)) for number, event in enumerate(events)]
    return LogInMemory(records, workload.opening, at_a_time)


async def work_off(server: str, log: LogInMemory) -> None:
    async with new_database(server, "profile") as database:
        await asyncio.to_thread(migrations.upgrade, database)
        metrics = Metrics()
        async with PostgresStore.open(DatabaseSettings(url=SecretStr(database)), metrics) as store:
            service = ConversationService(store, metrics=metrics)
            collect_garbage_seldom()
            await PartitionWorker(
                log, service, store, NoDeadLetters(), settings=WorkerSettings(), metrics=metrics, health=Health()
            ).run()
