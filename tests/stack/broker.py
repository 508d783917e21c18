"""What the demo and the tests ask of a broker: topics read from beginning to end and deleted, its limits."""

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.stack.process import DevstackError


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


async def count_records(kafka: KafkaSettings, topic: str) -> int:
    """How many records were written to a topic that began at 0."""
    async with admin(kafka) as brokers:
        places = [TopicPartition(topic, number) for number in range((await brokers.topics())[topic])]
    client = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers)
    await client.start()
    try:
        return sum((await client.end_offsets(places)).values())
    finally:
        await client.stop()


async def delete(bootstrap_servers: str, *topics: str) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await client.start()
    try:
        await client.delete_topics(list(topics))
    finally:
        await client.close()


async def is_apache_kafka(bootstrap_servers: str) -> bool:
    """Asks for a setting that only Apache Kafka's own broker has."""
    return "process.roles" in await _broker_configs(bootstrap_servers, "process.roles")


async def least_session_seconds(bootstrap_servers: str) -> float:
    """The shortest session timeout that the broker allows a member of a group."""
    name = "group.min.session.timeout.ms"
    return int((await _broker_configs(bootstrap_servers, name))[name]) / 1000


async def _broker_configs(bootstrap_servers: str, *names: str) -> dict[str, str]:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    try:
        await client.start()
    except KafkaConnectionError as error:
        raise DevstackError(f"Kafka does not answer at {bootstrap_servers}: check DEVSTACK_KAFKA") from error
    try:
        broker = (await client.describe_cluster())["brokers"][0]["node_id"]
        resource = ConfigResource(ConfigResourceType.BROKER, str(broker), dict.fromkeys(names, ""))
        (answer,) = await client.describe_configs([resource])
        (described,) = answer.to_object()["resources"]
        return {entry["config_names"]: entry["config_value"] for entry in described["config_entries"]}
    finally:
        await client.close()
