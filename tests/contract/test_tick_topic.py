"""What the ticker relies on of its topic: in memory as on a broker, which may stand still."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from consumer.errors import UnavailableError
from consumer.kafka.admin import admin
from consumer.kafka.bulk import TICK_BATCH_BYTES, TickProducer
from consumer.kafka.placement import home_of
from consumer.settings import KafkaSettings
from consumer.ticker import TickTopic
from tests.fakes import MemoryTickTopic
from tests.stack.broker import read_all
from tests.stack.kafka_broker import KafkaBroker

PARTITIONS = 3
PATIENCE_SECONDS = 1.0
Ticks = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Subject:
    topic: TickTopic
    read: Callable[[], Awaitable[Ticks]]
    go_away: Callable[[], None]
    come_back: Callable[[], None]

    async def publish(self, ticks: Ticks) -> None:
        """Each to the partition of its key."""
        partitions = await self.topic.partitions()
        for number in range(partitions):
            own = [tick for tick in ticks if self.topic.partition_of(tick[0], partitions) == number]
            if own:
                await self.topic.publish(number, own)


@pytest.fixture
def in_memory() -> Subject:
    topic = MemoryTickTopic(PARTITIONS, PATIENCE_SECONDS)

    async def read() -> Ticks:
        return topic.published

    every = range(PARTITIONS)
    return Subject(topic, read, lambda: topic.go_away(*every), lambda: topic.come_back(*every))


@pytest.fixture
async def on_a_broker(broker: KafkaBroker) -> AsyncIterator[Subject]:
    name = f"test-{secrets.token_hex(6)}"
    kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, request_timeout_seconds=PATIENCE_SECONDS)
    async with admin(kafka) as client:
        await client.create(name, PARTITIONS, 1, {})

    async def read() -> Ticks:
        records = await read_all(kafka, name)
        assert all(home_of(record.key or b"", PARTITIONS) == record.partition for record in records)
        return [(record.key or b"", record.value or b"") for record in records]

    async with TickProducer.open(kafka, name) as producer:
        yield Subject(
            producer,
            read,
            broker.freeze,
            broker.thaw,
        )
        broker.thaw()


@pytest.fixture(params=["in_memory", "on_a_broker"])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    made: Subject = request.getfixturevalue(request.param)
    yield made
    made.come_back()


def ticks(count: int, name: str = "c", size: int = 200) -> Ticks:
    return [(f"{name}-{number}".encode(), b"x" * size) for number in range(count)]


async def test_what_is_published_is_on_the_partition_of_its_key(subject: Subject) -> None:
    await subject.publish(ticks(50))

    assert await subject.topic.partitions() == PARTITIONS
    assert sorted(await subject.read()) == sorted(ticks(50))


async def test_more_than_a_request_holds_is_published(subject: Subject) -> None:
    many = ticks(4 * PARTITIONS * TICK_BATCH_BYTES // 200)

    await subject.publish(many)

    assert sorted(await subject.read()) == sorted(many)


async def test_a_broker_that_stands_still_fails_them_in_time_and_is_used_again(subject: Subject) -> None:
    await subject.publish(ticks(1, "before"))
    tasks = len(asyncio.all_tasks())

    for round_number in range(2):
        subject.go_away()
        async with asyncio.timeout(10 * PATIENCE_SECONDS):
            with pytest.raises(UnavailableError):
                await subject.publish(ticks(1, "during"))
        subject.come_back()
        await subject.publish(ticks(1, f"after-{round_number}"))

    assert {*ticks(1, "before"), *ticks(1, "after-0"), *ticks(1, "after-1")} <= set(await subject.read())
    assert len(asyncio.all_tasks()) <= tasks + 1
