"""A consumer group of its own for each test: topics, a database, replicas as processes."""

import asyncio
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import ConsumerRecord

from consumer.decoding import encoded
from consumer.kafka.admin import admin
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import Event
from consumer.settings import KafkaSettings
from tests.stack.broker import delete, read_all
from tests.stack.database import APPLIED
from tests.stack.replica import Replica
from tests.stack.services import Services

PARTITIONS = 3


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = 60) -> None:
    """Waits for a condition, not for a time."""
    deadline = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        await asyncio.sleep(0.05)


class Group:
    """Topics, a database, and the replicas that a test starts on them."""

    def __init__(self, kafka: KafkaSettings, database: str, logs: Path) -> None:
        self.kafka = kafka
        self.database = database
        self.topic = kafka.topics[0]
        self.replicas: list[Replica] = []
        self._logs = logs
        self._connection: asyncpg.Connection | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "CONSUMER_DATABASE__URL": self.database,
            "CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS": "2",
            "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "CONSUMER_KAFKA__GROUP_ID": self.kafka.group_id,
            "CONSUMER_KAFKA__TOPICS": self.topic,
            "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": self.kafka.dead_letter_topic,
            "CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS": str(self.kafka.session_timeout_seconds),
            "CONSUMER_KAFKA__COMMIT_INTERVAL_SECONDS": "0.2",
            "CONSUMER_WORKER__OUTAGE_BACKOFF_MAX_SECONDS": "0.5",
        }

    async def replica(self, **settings: str) -> Replica:
        """Starts a replica and waits until it is ready."""
        replica = await self.unready_replica(**settings)
        await until(replica.ready, "the replica is ready")
        return replica

    async def unready_replica(self, command: str = "run", **settings: str) -> Replica:
        log = self._logs / f"replica-{len(self.replicas)}.log"
        replica = await Replica({**self.environment, **settings}, log, "consumer", command).start()
        self.replicas.append(replica)
        return replica

    async def publish(self, *events: Event) -> None:
        await self.publish_raw(encoded(event) for event in events)

    async def publish_raw(self, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        async with KafkaProducer.open(self.kafka) as producer:
            await producer.publish(self.topic, records)

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.database)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def one(self, sql: str) -> Any:
        return (await self.rows(sql))[0][0]

    async def until_applied(self, events: int, seconds: float = 60) -> None:
        """Until the offsets have passed that many records, and so many were published."""

        async def passed() -> bool:
            return int(await self.one(APPLIED)) >= events

        await until(passed, f"{events} records applied", seconds)

    async def history(self) -> int:
        """Events with an effect."""
        return int(await self.one("SELECT count(*) FROM conversation_event WHERE source <> 'consumer'"))

    async def broken_version_chains(self) -> list[tuple[Any, ...]]:
        return await self.rows(
            "SELECT conversation_id FROM conversation JOIN conversation_event e USING (conversation_id) "
            "GROUP BY conversation_id HAVING count(*) <> max(conversation.version) "
            "OR count(DISTINCT e.version) <> count(*) OR max(e.version) <> count(*)"
        )

    async def dead_letters(self) -> list[ConsumerRecord[bytes, bytes]]:
        return await read_all(self.kafka, self.kafka.dead_letter_topic)

    async def committed(self) -> dict[int, int]:
        """Kafka's own idea of where the group is, by partition."""
        async with admin(self.kafka) as client:
            offsets = await client._client.list_consumer_group_offsets(self.kafka.group_id)
        return {tp.partition: offset.offset for tp, offset in offsets.items()}

    async def create_topic(self, topic: str, partitions: int = 1, configs: dict[str, str] | None = None) -> None:
        async with admin(self.kafka) as client:
            await client.create(topic, partitions, 1, configs or {})

    async def stored(self) -> dict[int, int]:
        return dict(await self.rows("SELECT partition, next_offset FROM kafka_offset"))


@pytest.fixture
async def group(stack: Services, database: str, tmp_path: Path) -> AsyncIterator[Group]:
    name = f"test-{secrets.token_hex(6)}"
    kafka = KafkaSettings(
        bootstrap_servers=stack.kafka,
        group_id=name,
        topics=(f"{name}.events",),
        dead_letter_topic=f"{name}.dead-letter",
        session_timeout_seconds=await stack.session_seconds(3),
    )
    made = Group(kafka, database, tmp_path)
    await made.create_topic(kafka.topics[0], PARTITIONS)
    await made.create_topic(kafka.dead_letter_topic, configs={"max.message.bytes": str(2 * 2**20)})
    yield made
    for replica in made.replicas:
        await replica.stop(signal.SIGKILL)
    await delete(stack.kafka, *kafka.topics, kafka.dead_letter_topic)
