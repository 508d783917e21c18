"""Where the time of a replica goes: one worker in this process, its log in memory, a real PostgreSQL.

`python -m tests.benchmarks.profile [EVENTS]` prints the parts of a lone event's time (see `lone`). Then, for a backlog
of so many events: the events per second without the profiler, the time of each part, the share of each stage in the
worker's own time, and the functions that take most. With 0 events only the first.
"""

import asyncio
import cProfile
import inspect
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console

from consumer.decoding import decode_all
from consumer.observability import logs
from consumer.observability.metrics import Metrics
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.service.service import decide
from consumer.settings import LogSettings
from consumer.worker import PartitionWorker
from tests.benchmarks.lone import print_parts
from tests.benchmarks.parts import timed_parts, total_seconds
from tests.benchmarks.worker_in_memory import log_of, work_off
from tests.benchmarks.workload import Workload
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


def shares(profiler: cProfile.Profile) -> dict[str, float]:
    """Of the time that the worker runs, whatever it waits for."""
    spent = {getattr(entry.code, "co_qualname", entry.code): entry.totaltime for entry in profiler.getstats()}
    running = spent[PartitionWorker.run.__qualname__]
    return {stage: spent[inspect.unwrap(function).__qualname__] / running for stage, function in STAGES.items()}


def main(events: int) -> None:
    logs.configure(LogSettings())
    with services() as found:
        asyncio.run(print_parts(console, found))
        if events:
            profile(found.postgres, Workload(CONVERSATIONS, events))


def profile(server: str, workload: Workload) -> None:
    profiler = cProfile.Profile()
    asyncio.run(work_off(server, log_of(workload)))
    log, began = log_of(workload), time.perf_counter()
    with timed_parts() as parts:
        asyncio.run(work_off(server, log))
    rate = workload.total / (time.perf_counter() - began)
    console.print(f"{rate:,.0f} events/s, one worker, migrations included; {parts.summary}")
    spent = total_seconds(parts.batches)
    for part in sorted(spent, key=spent.__getitem__, reverse=True)[:12]:
        console.print(f"  {1e6 * spent[part] / workload.total:6.2f} µs an event: {part}", markup=False)
    profiler.runcall(asyncio.run, work_off(server, log_of(workload)))
    for stage, share in shares(profiler).items():
        console.print(f"  {share:4.0%} of the worker's time: {stage}")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(FUNCTIONS)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
