"""Topics, their settings, the cluster's id."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import TopicAlreadyExistsError, TopicAuthorizationFailedError, for_code

from consumer.errors import ConfigurationError
from consumer.kafka.client import running
from consumer.kafka.connection import connection_arguments
from consumer.kafka.errors import classified, grant
from consumer.kafka.placement import misplaced
from consumer.kafka.reading import reader, records_before
from consumer.offsets import Partition
from consumer.settings import KafkaSettings

RETENTION_SLACK = timedelta(hours=2)
"""Beyond a topic's settings: brokers take records dated an hour ahead, and look for old segments every five minutes."""
NO_LIMIT_MS = 100 * 365 * 86_400_000
"""A century: who sets more means no limit."""
READ_SECONDS = 10.0
"""Limit on reading the last records of a partition."""
TRANSITION_BYTES = 8192
"""No transition is larger: id, actor and reason have 900 characters together, of at most six bytes each."""
HEADER_BYTES = 1024
"""Room that the error headers of a dead letter may take beyond the record."""


@dataclass(frozen=True, slots=True)
class TopicLayout:
    """How many partitions a topic has, and how many replicas the one with fewest."""

    partitions: int
    replicas: int


class KafkaAdmin:
    """Topics, their settings, and the cluster's id."""

    def __init__(self, client: AIOKafkaAdminClient) -> None:
        self._client = client

    async def cluster_id(self) -> str:
        with classified():
            return str((await self._client.describe_cluster())["cluster_id"])

    async def topics(self) -> dict[str, int]:
        """Topic -> number of partitions."""
        with classified():
            described = await self._client.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}

    async def describe(self, topic: str) -> TopicLayout:
        with classified():
            (described,) = await self._client.describe_topics([topic])
        replicas = min((len(partition["replicas"]) for partition in described["partitions"]), default=0)
        return TopicLayout(len(described["partitions"]), replicas)

    async def max_message_bytes(self, topic: str) -> int:
        return int((await self._configs(topic, "max.message.bytes"))["max.message.bytes"])

    async def longest_retention(self, topic: str) -> timedelta | None:
        """How old a record of the topic can become before the log drops it, at most; None if it may stay without limit.

        Whole segments are dropped, once their newest record is older than `retention.ms`; a segment takes records for
        as long as `segment.ms`. `retention.bytes` only shortens this.
        """
        configs = await self._configs(topic, "cleanup.policy", "retention.ms", "segment.ms")
        retention, segment = int(configs["retention.ms"]), int(configs["segment.ms"])
        if "delete" not in configs["cleanup.policy"] or retention < 0 or retention + segment > NO_LIMIT_MS:
            return None
        return timedelta(milliseconds=retention + segment) + RETENTION_SLACK

    async def _configs(self, topic: str, *names: str) -> dict[str, str]:
        """The topic's settings by name, the broker's defaults among them."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names, ""))
        with classified():
            (response,) = await self._client.describe_configs([resource])
        (described,) = response.to_object()["resources"]
        if described["error_code"]:
            error = for_code(described["error_code"])
            remedy = f": {grant('DescribeConfigs')}" if error is TopicAuthorizationFailedError else ""
            raise ConfigurationError(f"the settings of topic {topic} cannot be read: {error.__name__}{remedy}")
        return {entry["config_names"]: entry["config_value"] for entry in described["config_entries"]}

    async def create(self, topic: str, partitions: int, replication: int, configs: dict[str, str]) -> bool:
        """Creates a topic; whether it was not there yet."""
        new = NewTopic(topic, partitions, replication, topic_configs=configs)
        with classified():
            response = await self._client.create_topics([new])
        _, code, *message = response.to_object()["topic_errors"][0].values()
        error = for_code(code)
        if error is TopicAlreadyExistsError:
            return False
        if code:
            raise ConfigurationError(f"topic {topic} was not created: {error.__name__} {message[0] if message else ''}")
        return True


@asynccontextmanager
async def admin(settings: KafkaSettings) -> AsyncIterator[KafkaAdmin]:
    client = AIOKafkaAdminClient(**connection_arguments(settings))
    async with running(client, settings, AIOKafkaAdminClient.close):
        yield KafkaAdmin(client)


async def cluster_id(settings: KafkaSettings) -> str:
    async with admin(settings) as client:
        return await client.cluster_id()


async def check_topics(settings: KafkaSettings, *others: str) -> int:
    """Returns the size limit of the dead-letter topic, in bytes.

    Raises `ConfigurationError` if topics, or these others, are missing, or a dead letter might not fit into its topic.
    """
    async with admin(settings) as client:
        await _require(client, settings, *settings.topics, settings.dead_letter_topic, *others)
        limit = await client.max_message_bytes(settings.dead_letter_topic)
        for topic in settings.topics:
            if (source := await client.max_message_bytes(topic)) + HEADER_BYTES > limit:
                raise ConfigurationError(
                    f"max.message.bytes of {settings.dead_letter_topic} is {limit}: raise it to at least "
                    f"{source + HEADER_BYTES}, or a dead letter of {topic} may not fit"
                )
        return limit


async def transition_limit(settings: KafkaSettings) -> int:
    """The size limit of the transition topic, in bytes.

    Raises `ConfigurationError` if there is no such topic, or a transition might not fit into it.
    """
    async with admin(settings) as client:
        await _require(client, settings, settings.transition_topic)
        limit = await client.max_message_bytes(settings.transition_topic)
    if limit < TRANSITION_BYTES:
        raise ConfigurationError(
            f"max.message.bytes of {settings.transition_topic} is {limit}: raise it to at least {TRANSITION_BYTES}"
        )
    return limit


async def _require(client: KafkaAdmin, settings: KafkaSettings, *topics: str) -> None:
    there = await client.topics()
    if missing := [topic for topic in topics if topic not in there]:
        several = len(missing) > 1
        what = f"topic{'s' if several else ''} {', '.join(missing)} {'do' if several else 'does'} not exist"
        them = "them" if several else "it"
        hidden = "" if settings.security_protocol == "PLAINTEXT" else f", or this user may not describe {them}"
        raise ConfigurationError(f"{what}{hidden}: run `conversation-consumer topics`")


async def log_bounds(settings: KafkaSettings, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
    """The first offset of each partition's log, and the one after the last."""
    if not partitions:
        return {}
    places = {partition: TopicPartition(partition.topic, partition.number) for partition in partitions}
    async with reader(settings) as client:
        with classified():
            first = await client.beginning_offsets(list(places.values()))
            end = await client.end_offsets(list(places.values()))
    return {partition: (first[tp], end[tp]) for partition, tp in places.items()}


async def misplaced_share(settings: KafkaSettings, sample: int) -> dict[str, tuple[int, int]]:
    """Of the last `sample` records of each partition of the input topics: how many are misplaced, and of how many.

    By topic. Raises `UnavailableError` where the brokers do not answer in time.
    """
    async with admin(settings) as brokers:
        counts = await brokers.topics()
    shares = {}
    async with reader(settings) as client:
        for topic in settings.topics:
            records = await _last_records(client, topic, counts.get(topic, 0), sample)
            wrong = sum(len(misplaced(some, number, counts[topic])) for number, some in records.items())
            shares[topic] = (wrong, sum(map(len, records.values())))
    return shares


async def _last_records(
    client: AIOKafkaConsumer, topic: str, partitions: int, count: int
) -> dict[int, list["ConsumerRecord[bytes, bytes]"]]:
    """Partition -> its last `count` records."""
    places = [TopicPartition(topic, number) for number in range(partitions)]
    found: dict[int, list[ConsumerRecord[bytes, bytes]]] = {number: [] for number in range(partitions)}
    with classified():
        async with asyncio.timeout(READ_SECONDS):
            client.assign(places)
            first, end = await client.beginning_offsets(places), await client.end_offsets(places)
            for tp in places:
                client.seek(tp, max(first[tp], end[tp] - count))
            for tp in places:
                async for records, _ in records_before(client, tp, end[tp]):
                    found[tp.partition] += records
    return found
