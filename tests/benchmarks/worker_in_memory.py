"""A worker in this process, its log in memory, on a real PostgreSQL."""

import asyncio
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from pydantic import SecretStr

from consumer.commands.replica import collect_garbage_seldom
from consumer.decoding import encoded
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.postgres.store import PostgresStore
from consumer.records import DeadLetter, Record
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings, WorkerSettings
from consumer.worker import PartitionWorker
from tests.benchmarks.workload import PACE, Workload
from tests.memory_log import FiniteLog
from tests.stack.database import migrate, new_database


class LogInMemory(FiniteLog):
    """After the `opening` it hands out so many records at a time, or as many as are wanted."""

    def __init__(self, records: Sequence[Record], opening: int = 0, at_a_time: int | None = None) -> None:
        super().__init__(Partition("profile", "events", 0), records)
        self._opening = opening
        self._at_a_time = at_a_time

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        if self.position < self._opening:
            limit = min(limit, self._opening - self.position)
        elif self._at_a_time:
            limit = min(limit, self._at_a_time)
        return await super().take(limit, seconds)


class NoDeadLetters:
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        raise AssertionError(f"the workload holds no {letters[0].reason}")


def log_of(workload: Workload, at_a_time: int | None = None) -> LogInMemory:
    events = workload.all(datetime.now(UTC) - workload.total * PACE)
    records = [Record("events", 0, number, 0, *encoded(event)) for number, event in enumerate(events)]
    return LogInMemory(records, workload.opening, at_a_time)


async def work_off(server: str, log: LogInMemory) -> None:
    async with new_database(server, "profile") as database:
        await migrate(database)
        await run_workers(database, [log])


async def run_workers(database: str, logs: Iterable[FiniteLog]) -> None:
    """A worker for each partition, until all are at their end."""
    metrics = Metrics()
    collect_garbage_seldom()
    async with (
        PostgresStore.open(DatabaseSettings(url=SecretStr(database)), metrics) as store,
        asyncio.TaskGroup() as group,
    ):
        service = ConversationService(store, metrics=metrics)
        for log in logs:
            worker = PartitionWorker(
                log, service, store, NoDeadLetters(), settings=WorkerSettings(), metrics=metrics, health=Health()
            )
            group.create_task(worker.run())
