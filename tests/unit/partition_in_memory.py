"""An assigned partition over a client in memory, polled as the source does."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumer.kafka.partition import AssignedPartition
from consumer.observability.lag import Lag
from consumer.offsets import Partition
from consumer.settings import WorkerSettings
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer

PLACE = TopicPartition("events", 0)
OTHER = TopicPartition("events", 1)
LONG = 1000.0


@dataclass(frozen=True, slots=True)
class Subject:
    cluster: MemoryCluster
    client: MemoryConsumer
    partition: AssignedPartition

    def publish(self, *values: bytes, **rest: Any) -> None:
        for value in values:
            self.cluster.append(PLACE, value, **rest)

    async def poll(self, limit: int = 100) -> None:
        """As the source does."""
        fetched = await self.client.getmany(PLACE, timeout_ms=100, max_records=limit)
        for records in fetched.values():
            self.partition.append(records)

    async def taken(self, limit: int = 100) -> list[bytes | None]:
        return [record.value for record in await self.partition.take(limit, 0.1)]

    def age(self) -> float:
        lag = self.partition.lag()
        assert lag is not None
        return lag.seconds


async def assigned(**settings: int) -> Subject:
    """Of a group that has committed offset 0."""
    cluster = MemoryCluster()
    cluster.create("events", 2)
    cluster.committed["group", PLACE] = 0
    client = MemoryConsumer(cluster, group_id="group", request_timeout_ms=1000)
    starting = asyncio.create_task(client.start())
    await client.assign(PLACE)
    await starting
    partition = AssignedPartition(client, Partition("group", "events", 0), cluster.id, WorkerSettings(**settings))
    return Subject(cluster, client, partition)


def seconds_ago(seconds: float) -> int:
    """A record's timestamp."""
    return round((time.time() - seconds) * 1000)


def lag_of(records: int, seconds: float = 0.0) -> Lag:
    """About so many seconds, or exactly none."""
    about: Any = pytest.approx(seconds, abs=5 if seconds else 0)
    return Lag("events", 0, records, about)
