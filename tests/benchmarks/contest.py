"""All competitors side by side: the same events, the same servers, a fresh database each, one after the other."""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from typing import Any

from consumer.settings import WorkerSettings
from tests.benchmarks.arena import PARTITIONS, Arena, Log
from tests.benchmarks.ours import Run, apply_all

BATCH = WorkerSettings().max_batch
"""The ceiling's, as ours: larger ones fold more events into a row, so there is no best one."""


@dataclass(frozen=True, slots=True)
class Competitor:
    """`share`: how much of the workload it gets, so that the slow ones take no longer than the fast."""

    letter: str
    what: str
    module: str
    share: float
    options: dict[str, Any] = field(default_factory=dict)


COMPETITORS = (
    Competitor("A", "aiokafka + SQLAlchemy ORM, a commit per event", "orm", 0.008),
    Competitor("B", "a FastStream handler doing the same", "faststream_orm", 0.008),
    Competitor("C8", "asyncpg, a transaction per event, 8 tasks, no Kafka", "raw_asyncpg", 0.08, {"tasks": 8}),
    Competitor("C32", "the same, 32 tasks", "raw_asyncpg", 0.08, {"tasks": 32}),
    Competitor("D1", "ceiling: the rows made beforehand, 1 connection", "ceiling", 1, {"batch": BATCH}),
    Competitor("Dn", f"ceiling: {PARTITIONS} connections", "ceiling", 1, {"batch": BATCH, "connections": PARTITIONS}),
)
WITH_KAFKA = ("A", "B")


async def rate_of(arena: Arena, log: Log, competitor: Competitor) -> float:
    """Events per second."""
    workload = log.workload
    async with arena.database() as database:
        course = {
            "database": database,
            "conversations": workload.conversations,
            "opening": workload.opening,
            "starting": log.starting.isoformat(),
            "seed": workload.seed,
            "events": round(workload.events * competitor.share),
            **competitor.options,
        }
        if competitor.letter in WITH_KAFKA:
            group = log.for_a_new_group().group_id
            course |= {"kafka": log.kafka.bootstrap_servers, "topic": log.kafka.topics[0], "group": group}
            course["start"] = log.talk
        data = await _run(competitor.module, course)
        return float(data["events"] / data["seconds"])


async def run_of_ours(arena: Arena, log: Log, replicas: int) -> Run:
    async with arena.database() as database:
        return await apply_all(arena, log, database, replicas)


async def _run(module: str, course: dict[str, Any]) -> dict[str, float]:
    command = (sys.executable, "-m", f"tests.benchmarks.competitors.{module}", json.dumps(course))
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{module} ended with {process.returncode}")
    data: dict[str, float] = json.loads(printed.splitlines()[-1])
    return data
