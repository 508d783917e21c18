"""Where the time of a lone event goes: a worker that gets one event at a time, or a few; a replica at a steady pace.

Then what takes the CPU of such a replica.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from rich.console import Console

from tests.benchmarks import cpu
from tests.benchmarks.arena import Arena, open_arena
from tests.benchmarks.latency import Latency, NotMeasurableError, Pace, measure_latency
from tests.benchmarks.parts import Parts, load, parts_table, timed_parts
from tests.benchmarks.report import show_table
from tests.benchmarks.worker_in_memory import log_of, work_off
from tests.benchmarks.workload import Workload
from tests.stack.services import Services

T = TypeVar("T")
CONVERSATIONS = 2500
EVENTS = 3000
AT_A_TIME = (1, 5)
PACE = Pace(500, 4)
SECONDS = 10.0
LARGEST = 20
"""Batches of more records are of the opening."""


async def print_parts(console: Console, services: Services) -> None:
    for number in AT_A_TIME:
        parts = await with_records_at_hand(services.postgres, number)
        title = f"Records at hand, {number} at a time; {parts.summary}"
        show_table(console, title, parts_table(parts.batches, LARGEST))
    async with open_arena(services) as arena:
        try:
            parts, latency = await at_a_steady_pace(arena, "tests.benchmarks.parts", load)
        except NotMeasurableError as error:
            console.print(f"at a steady pace: {error}")
        else:
            title = f"A replica, {latency.summary}; {parts.summary}"
            show_table(console, title, parts_table(parts.batches, LARGEST))
            await print_cpu(console, arena)


async def print_cpu(console: Console, arena: Arena) -> None:
    """What takes the CPU of a replica. Raises `NotMeasurableError`."""
    samples, latency = await at_a_steady_pace(arena, "tests.benchmarks.cpu", cpu.load)
    microseconds, *_ = latency.cost.cpu.microseconds(latency.cost.events)
    title = f"CPU of a replica, {latency.summary}"
    show_table(console, title, cpu.cpu_table(samples, microseconds))


async def with_records_at_hand(server: str, at_a_time: int) -> Parts:
    """One worker in this process, without Kafka."""
    workload = Workload(CONVERSATIONS, EVENTS * at_a_time)
    with timed_parts() as parts:
        await work_off(server, log_of(workload, at_a_time))
    return parts


async def at_a_steady_pace(arena: Arena, module: str, read: Callable[[Path], T]) -> tuple[T, Latency]:
    """One replica, a process of its own, on a real Kafka, and what is read of the file that `module` writes.

    Raises `NotMeasurableError`.
    """
    with TemporaryDirectory() as directory:
        file = Path(directory, "found.json")
        latency = await measure_latency(arena, PACE, SECONDS, module, str(file))
        return await asyncio.to_thread(read, file), latency
