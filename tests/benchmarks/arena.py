"""Where rivals meet: topics filled beforehand, databases of their own, all on the same servers."""

import asyncio
import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from aiokafka import AIOKafkaProducer

from consumer import migrations
from consumer.contract import encoded
from consumer.conversation import Event
from consumer.devstack.database import execute, new_database
from consumer.devstack.services import Services
from consumer.devstack.topic import delete
from consumer.kafka import admin
from consumer.settings import KafkaSettings

PARTITIONS = 4


class Arena:
    """The servers, a template of an empty database, and a directory for logs."""

    def __init__(self, services: Services, template: str, logs: Path) -> None:
        self.services = services
        self.template = template
        self.logs = logs

    @asynccontextmanager
    async def database(self, template: str | None = None) -> AsyncIterator[str]:
        """A database at the newest schema. What was written before is on disk by then, so that nobody pays for it."""
        async with new_database(self.services.postgres, "bench", template or self.template) as url:
            await execute(url, "CHECKPOINT")
            yield url

    @asynccontextmanager
    async def topic(self, events: Iterable[Event], partitions: int = PARTITIONS) -> AsyncIterator[KafkaSettings]:
        """A topic with `events` in it, and one for dead letters."""
        name = f"bench-{secrets.token_hex(6)}"
        kafka = KafkaSettings(
            bootstrap_servers=self.services.kafka,
            group_id=name,
            topics=(f"{name}.events",),
            dead_letter_topic=f"{name}.dead-letter",
        )
        async with admin(kafka) as brokers:
            await brokers.create(kafka.topics[0], partitions, 1, {})
            await brokers.create(kafka.dead_letter_topic, 1, 1, {"max.message.bytes": str(2 * 2**20)})
        try:
            await fill(kafka, events)
            yield kafka
        finally:
            await delete(self.services.kafka, *kafka.topics, kafka.dead_letter_topic)


async def fill(kafka: KafkaSettings, events: Iterable[Event]) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, linger_ms=20, max_batch_size=256 * 1024, compression_type="lz4"
    )
    await producer.start()
    try:
        sent = None
        for event in events:
            key, value = encoded(event)
            sent = await producer.send(kafka.topics[0], value, key)
        await producer.flush()
        if sent is not None:
            await sent
    finally:
        await producer.stop()


@asynccontextmanager
async def open_arena(services: Services) -> AsyncIterator[Arena]:
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        async with new_database(services.postgres, "bench_template") as template:
            await asyncio.to_thread(migrations.upgrade, template)
            yield Arena(services, template, logs)


async def fetch(url: str, sql: str, *arguments: object) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql, *arguments)]
    finally:
        await connection.close()
