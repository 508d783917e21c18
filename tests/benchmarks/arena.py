"""Where competitors meet: topics filled beforehand, databases of their own, all on the same servers."""

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import murmur2

from consumer.decoding import encoded
from consumer.kafka.admin import admin, log_bounds
from consumer.lifecycle.model import Event
from consumer.offsets import Partition
from consumer.settings import KafkaSettings
from tests.benchmarks.workload import PACE, Workload
from tests.stack.broker import delete
from tests.stack.database import execute, migrate, new_database
from tests.stack.services import Services

PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Log:
    """A topic with a workload in it. By partition: `talk`, the offset of the first event after the opening; `ends`."""

    kafka: KafkaSettings
    workload: Workload
    starting: datetime
    talk: dict[int, int]
    ends: dict[int, int]

    def place_of(self, conversation_id: str) -> int:
        """The partition it is on."""
        return place_of(conversation_id, len(self.ends))

    def for_a_new_group(self) -> KafkaSettings:
        return self.kafka.model_copy(update={"group_id": f"{self.kafka.group_id}-{secrets.token_hex(4)}"})


class Arena:
    """The servers, a template of an empty database, and a directory for logs."""

    def __init__(self, services: Services, template: str, logs: Path) -> None:
        self.services = services
        self.template = template
        self.logs = logs

    @asynccontextmanager
    async def database(self, template: str | None = None) -> AsyncIterator[str]:
        """A database at the newest schema. What was written before is on disk by then, so that nobody pays for it."""
        copied = template or self.template
        async with new_database(self.services.postgres, "bench", copied, "FILE_COPY" if template else "WAL_LOG") as url:
            await execute(url, "CHECKPOINT")
            yield url

    @asynccontextmanager
    async def log(
        self, workload: Workload, *, opening: bool = True, partitions: int = PARTITIONS, filled: int | None = None
    ) -> AsyncIterator[Log]:
        """A topic with all of the workload, or with what comes after its opening; or with its first partitions' part.

        Those that come after the `filled` ones are empty.
        """
        async with self.topic(partitions=partitions) as kafka:
            starting = datetime.now(UTC) - workload.total * PACE
            events = workload.all(starting)
            first = list(islice(events, workload.opening))
            if filled is not None:
                first = [event for event in first if place_of(event.conversation_id, partitions) < filled]
                events = (event for event in events if place_of(event.conversation_id, partitions) < filled)
            await fill(kafka, first if opening else ())
            places = [Partition(kafka.group_id, kafka.topics[0], number) for number in range(partitions)]
            talk = {place.number: end for place, (_, end) in (await log_bounds(kafka, places)).items()}
            await fill(kafka, events)
            ends = {place.number: end for place, (_, end) in (await log_bounds(kafka, places)).items()}
            yield Log(kafka, workload, starting, talk, ends)

    @asynccontextmanager
    async def topic(
        self, configs: dict[str, str] | None = None, partitions: int = PARTITIONS
    ) -> AsyncIterator[KafkaSettings]:
        """An empty topic, and one for dead letters."""
        name = f"bench-{secrets.token_hex(6)}"
        kafka = KafkaSettings(
            bootstrap_servers=self.services.kafka,
            group_id=name,
            topics=(f"{name}.events",),
            dead_letter_topic=f"{name}.dead-letter",
            session_timeout_seconds=await self.services.session_seconds(3),
        )
        async with admin(kafka) as brokers:
            await brokers.create(kafka.topics[0], partitions, 1, configs or {})
            await brokers.create(kafka.dead_letter_topic, 1, 1, {"max.message.bytes": str(2 * 2**20)})
        try:
            yield kafka
        finally:
            await delete(self.services.kafka, *kafka.topics, kafka.dead_letter_topic)


def place_of(conversation_id: str, partitions: int) -> int:
    """The partition of so many that it is on."""
    return int(murmur2(conversation_id.encode()) & 0x7FFFFFFF) % partitions


async def fill(kafka: KafkaSettings, events: Iterable[Event]) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, linger_ms=20, max_batch_size=256 * 1024, compression_type="lz4"
    )
    await producer.start()
    try:
        for event in events:
            key, value = encoded(event)
            await producer.send(kafka.topics[0], value, key)
        await producer.flush()
    finally:
        await producer.stop()


@asynccontextmanager
async def open_arena(services: Services) -> AsyncIterator[Arena]:
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        async with new_database(services.postgres, "bench_template") as template:
            await migrate(template)
            yield Arena(services, template, logs)


async def fetch(url: str, sql: str, *arguments: object) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]
    finally:
        await connection.close()
