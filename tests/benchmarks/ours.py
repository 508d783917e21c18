"""Our replicas as an operator would run them, and how fast their offsets move."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from consumer.devstack.database import APPLIED
from consumer.devstack.replica import Replica
from consumer.settings import KafkaSettings
from tests.benchmarks.arena import Arena

SAMPLE_SECONDS = 0.01
LIMIT_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of the log, from one offset total to another."""

    events: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.events / self.seconds


@asynccontextmanager
async def replicas(
    arena: Arena, count: int, kafka: KafkaSettings, database: str, **more: str
) -> AsyncIterator[list[Replica]]:
    settings = {**environment(kafka, database), **more}
    started = [await Replica(settings, arena.logs / f"replica-{number}.log").start() for number in range(count)]
    try:
        yield started
    finally:
        codes = [await replica.stop() for replica in started]
    if any(codes):
        raise RuntimeError(f"a replica ended with {codes}: {arena.logs}")


def environment(kafka: KafkaSettings, database: str) -> Mapping[str, str]:
    return {
        "CONSUMER_DATABASE__URL": database,
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CONSUMER_KAFKA__GROUP_ID": kafka.group_id,
        "CONSUMER_KAFKA__TOPICS": kafka.topics[0],
        "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
    }


async def timed(database: str, start: int, end: int) -> Run:
    """Between the moments at which the stored offsets have passed `start` and `end` records."""
    connection = await asyncpg.connect(database)
    try:
        began, at_start = await _passed(connection, start)
        ended, at_end = await _passed(connection, end)
        return Run(at_end - at_start, ended - began)
    finally:
        await connection.close()


async def _passed(connection: asyncpg.Connection, records: int) -> tuple[float, int]:
    deadline = time.monotonic() + LIMIT_SECONDS
    while (applied := int(await connection.fetchval(APPLIED))) < records:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{applied} of {records} records applied after {LIMIT_SECONDS} s")
        await asyncio.sleep(SAMPLE_SECONDS)
    return time.monotonic(), applied
