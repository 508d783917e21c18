"""What a Citus cluster does: four partitions in one process, their log in memory, the servers of `DEVSTACK_POSTGRES`.

`python -m tests.benchmarks.cluster [--events 200000] [--shards N]` prints events per second and the CPU of each server
that runs on this machine. On a server without Citus it prints the same of that one.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import psutil
from rich.console import Console

from consumer.decoding import encoded
from consumer.observability import logs
from consumer.offsets import Partition
from consumer.records import Record
from consumer.settings import LogSettings
from tests.benchmarks.arena import PARTITIONS, place_of
from tests.benchmarks.worker_in_memory import run_workers
from tests.benchmarks.workload import PACE, Workload
from tests.memory_log import FiniteLog
from tests.stack.citus import workers_of
from tests.stack.database import migrate, new_database
from tests.stack.services import services

console = Console(soft_wrap=True, highlight=False)


def logs_of(workload: Workload) -> list[FiniteLog]:
    records: list[list[Record]] = [[] for _ in range(PARTITIONS)]
    for event in workload.all(datetime.now(UTC) - workload.total * PACE):
        place = place_of(event.conversation_id, PARTITIONS)
        records[place].append(Record("events", place, len(records[place]), 0, *encoded(event)))
    return [FiniteLog(Partition("cluster", "events", place), of_one) for place, of_one in enumerate(records)]


def cpu_seconds(server: str) -> float:
    """Of the server that listens on the port of a URL, with the sessions that have ended; 0 if it is elsewhere."""
    port = urlsplit(server).port
    for process in psutil.process_iter(["name"]):
        if process.info["name"] == "postgres" and any(
            one.laddr.port == port and one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp")
        ):
            own = process.cpu_times()
            living = [child.cpu_times() for child in process.children(recursive=True)]
            return float(own.user + own.system + own.children_user + own.children_system) + sum(
                times.user + times.system for times in living
            )
    return 0.0


@contextmanager
def timed(servers: Sequence[str], events: int) -> Iterator[None]:
    cpu, own, began = [cpu_seconds(server) for server in servers], time.process_time(), time.perf_counter()
    yield
    rate, own = events / (time.perf_counter() - began), time.process_time() - own
    each = [1e6 * (cpu_seconds(server) - before) / events for server, before in zip(servers, cpu, strict=True)]
    parts = " + ".join(f"{one:.1f}" for one in each)
    console.print(f"{rate:,.0f} events/s; CPU µs an event: replica {1e6 * own / events:.1f}, servers {parts}")


async def measure(server: str, workload: Workload, shards: int | None) -> None:
    servers, made = [server, *await workers_of(server)], logs_of(workload)
    async with new_database(server, "cluster") as database:
        await migrate(database, shards)
        with timed(servers, workload.total):
            await run_workers(database, made)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.cluster", description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--shards", type=int)
    options = parser.parse_args()
    logs.configure(LogSettings(level="error"))
    with services() as found:
        asyncio.run(measure(found.postgres, Workload(events=options.events), options.shards))


if __name__ == "__main__":
    main()
