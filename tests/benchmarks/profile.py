"""Where the time of a replica goes: one worker in this process, its log in memory, a real PostgreSQL.

`python -m tests.benchmarks.profile [EVENTS]` prints the events per second without the profiler, the time of each
statement, the share of each stage in the worker's own time, and the functions that take most.
"""

import asyncio
import cProfile
import inspect
import pstats
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import asyncpg
from pydantic import SecretStr
from rich.console import Console

from consumer.commands.replica import collect_garbage_seldom
from consumer.decoding import decode_all, encoded
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.postgres import migrations
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.records import DeadLetter, Record
from consumer.service.service import ConversationService, decide
from consumer.settings import DatabaseSettings, WorkerSettings
from consumer.worker import PartitionWorker
from tests.benchmarks.workload import PACE, Workload
from tests.stack.database import new_database
from tests.stack.services import services

console = Console(soft_wrap=True, highlight=False)
CONVERSATIONS = 2500
FUNCTIONS = 30
STAGES: dict[str, Callable[..., Any]] = {
    "decode": decode_all,
    "read what is known": PostgresStore.attempt,
    "decide": decide,
    "write": PostgresAttempt.save,
    "count": Metrics.committed,
}
"""Stage of a batch -> the function that does it. Unnamed: bookkeeping between them, and the event loop."""


class LogInMemory:
    """See `worker.PartitionLog`: given up once all of it is taken."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.partition = Partition("profile", "events", 0)
        self._records = records
        self._next = 0

    async def cluster_id(self) -> str:
        return "none"

    async def bounds(self) -> tuple[int, int]:
        return 0, len(self._records)

    def seek(self, offset: int) -> None:
        self._next = offset

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
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


def timed(name: str, seconds: dict[str, float]) -> None:
    """Has `asyncpg.Connection` count the time that its statements take."""
    original = getattr(asyncpg.Connection, name)

    async def method(self: asyncpg.Connection, what: str, *rest: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return await original(self, what, *rest, **options)
        finally:
            seconds[f"{name} {' '.join(what.split())[:70]}"] += time.perf_counter() - began

    setattr(asyncpg.Connection, name, method)


def log_of(workload: Workload) -> LogInMemory:
    events = workload.all(datetime.now(UTC) - workload.total * PACE)
    return LogInMemory([Record("events", 0, number, 0, *encoded(event)) for number, event in enumerate(events)])


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


def shares(profiler: cProfile.Profile) -> dict[str, float]:
    """Of the time that the worker runs, whatever it waits for."""
    spent = {getattr(entry.code, "co_qualname", entry.code): entry.totaltime for entry in profiler.getstats()}
    running = spent[PartitionWorker.run.__qualname__]
    return {stage: spent[inspect.unwrap(function).__qualname__] / running for stage, function in STAGES.items()}


def main(events: int) -> None:
    workload, profiler = Workload(CONVERSATIONS, events), cProfile.Profile()
    seconds: dict[str, float] = defaultdict(float)
    with services() as found:
        asyncio.run(work_off(found.postgres, log_of(workload)))
        for name in ("execute", "fetch", "copy_records_to_table"):
            timed(name, seconds)
        log, began = log_of(workload), time.perf_counter()
        asyncio.run(work_off(found.postgres, log))
        rate = workload.total / (time.perf_counter() - began)
        console.print(f"{rate:,.0f} events/s, one worker, migrations included")
        for what, spent in sorted(seconds.items(), key=lambda item: -item[1])[:10]:
            console.print(f"  {spent / workload.total * 1e6:6.2f} µs an event: {what}", markup=False)
        profiler.runcall(asyncio.run, work_off(found.postgres, log_of(workload)))
    for stage, share in shares(profiler).items():
        console.print(f"  {share:4.0%} of the worker's time: {stage}")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
