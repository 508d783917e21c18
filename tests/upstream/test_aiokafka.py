"""What aiokafka does that ours works around. A test that fails here says that a workaround may go."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaTimeoutError, LeaderNotAvailableError, OutOfOrderSequenceNumber

from consumer.kafka.admin import admin
from consumer.kafka.client import open_consumer
from consumer.settings import KafkaSettings
from tests.stack.kafka_cluster import KafkaCluster

PLACE = TopicPartition("events", 0)
REQUEST_SECONDS = 0.5
LEADER = 1


@asynccontextmanager
async def half_open(consumer: Callable[..., AIOKafkaConsumer]) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer whose connection to the only broker has become half open. New connections work."""
    async with KafkaCluster.open(brokers=1) as cluster:
        async with admin(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers)) as client:
            await client.create(PLACE.topic, 1, 1, {})
        made = consumer(
            bootstrap_servers=cluster.bootstrap_servers,
            request_timeout_ms=round(1000 * REQUEST_SECONDS),
            metadata_max_age_ms=10**6,
        )
        await made.start()
        try:
            await made.end_offsets([PLACE])
            cluster.proxy(0).half_open()
            yield made
        finally:
            await made.stop()


async def test_a_look_up_of_offsets_never_gives_a_half_open_connection_up() -> None:
    async with half_open(AIOKafkaConsumer) as client:
        for _ in range(4):
            with pytest.raises(KafkaTimeoutError):
                await client.end_offsets([PLACE])


async def test_ours_gives_it_up_with_the_first_request_that_is_not_answered() -> None:
    async with half_open(open_consumer) as client, asyncio.timeout(2 * REQUEST_SECONDS + 1):
        assert await client.end_offsets([PLACE]) == {PLACE: 0}


@asynccontextmanager
async def leader_lost(cluster: KafkaCluster) -> AsyncIterator[None]:
    """The only replica of a topic: silent first, then gone."""
    cluster.proxy(LEADER).fall_silent()
    await asyncio.sleep(3 * REQUEST_SECONDS)
    await cluster.kill(LEADER)
    yield
    cluster.proxy(LEADER).heal()
    await cluster.start(LEADER)


async def test_an_idempotent_producer_that_gave_a_batch_up_is_refused_from_then_on() -> None:
    async with KafkaCluster.open() as cluster:
        await create_on_one_broker(cluster)
        producer = AIOKafkaProducer(
            bootstrap_servers=cluster.bootstrap_servers,
            enable_idempotence=True,
            request_timeout_ms=round(1000 * REQUEST_SECONDS),
        )
        await producer.start()
        await producer.send_and_wait(PLACE.topic, b"acknowledged")

        async with leader_lost(cluster):
            with pytest.raises(LeaderNotAvailableError):
                await producer.send_and_wait(PLACE.topic, b"given up")

        for _ in range(3):
            with pytest.raises(OutOfOrderSequenceNumber):
                await asyncio.wait_for(producer.send_and_wait(PLACE.topic, b"refused"), 20)
        await producer.stop()


async def create_on_one_broker(cluster: KafkaCluster) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    await client.start()
    await client.create_topics(
        [NewTopic(PLACE.topic, -1, -1, {0: [LEADER]}, topic_configs={"min.insync.replicas": "1"})]
    )
    await client.close()


async def test_a_transaction_is_committed_although_a_record_of_it_was_refused() -> None:
    async with KafkaCluster.open() as cluster:
        await create_on_one_broker(cluster)
        producer = AIOKafkaProducer(
            bootstrap_servers=cluster.bootstrap_servers,
            transactional_id="events",
            request_timeout_ms=round(1000 * REQUEST_SECONDS),
        )
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(PLACE.topic, b"acknowledged")
        async with leader_lost(cluster):
            with pytest.raises(LeaderNotAvailableError):
                await producer.send_and_wait(PLACE.topic, b"given up")

        refused = await producer.send(PLACE.topic, b"refused")
        await asyncio.wait_for(producer.commit_transaction(), 20)

        with pytest.raises(OutOfOrderSequenceNumber):
            await refused
        await producer.stop()
