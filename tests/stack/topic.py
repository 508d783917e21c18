"""Topics of the demo and the tests: read from beginning to end, and deleted."""

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings


async def read_all(kafka: KafkaSettings, topic: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Every committed record there is now, partition by partition."""
    async with admin(kafka) as brokers:
        places = [TopicPartition(topic, number) for number in range((await brokers.topics())[topic])]
    client = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await client.start()
    try:
        client.assign(places)
        found: list[ConsumerRecord[bytes, bytes]] = []
        for tp, end in (await client.end_offsets(places)).items():
            while await client.position(tp) < end:
                found.extend((await client.getmany(tp, timeout_ms=200)).get(tp, []))
        return found
    finally:
        await client.stop()


async def delete(bootstrap_servers: str, *topics: str) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await client.start()
    try:
        await client.delete_topics(list(topics))
    finally:
        await client.close()
