"""`doctor`: is everything in place? Checks in the order in which they depend on each other, each with its remedy."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from consumer.errors import ConfigurationError, UnavailableError
from consumer.kafka.admin import admin, check_topics, log_bounds, misplaced_share
from consumer.kafka.placement import REMEDY
from consumer.postgres import migrations
from consumer.postgres.store import PostgresStore
from consumer.settings import Settings

SAMPLE = 200
"""Records of each partition whose place is checked."""
MAX_SKEW = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw; `remedy` is empty where all is well."""

    check: str
    seen: str
    remedy: str = ""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All findings; those that need Kafka or the database are left out where it does not answer."""
    kafka_answers = False
    async for finding in _kafka(settings):
        kafka_answers = kafka_answers or not finding.remedy
        yield finding
    async with PostgresStore.open(settings.database) as store:
        async for finding in _database(store):
            yield finding
            if finding.remedy:
                return
        if kafka_answers:
            yield await _offsets(settings, store)


async def _kafka(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with admin(settings.kafka) as client:
            yield Finding("Kafka answers", f"cluster {await client.cluster_id()}")
            topics = await client.topics()
        await check_topics(settings.kafka)
    except UnavailableError as error:
        yield Finding("Kafka answers", str(error), "check CONSUMER_KAFKA__BOOTSTRAP_SERVERS and the brokers")
        return
    except ConfigurationError as error:
        yield Finding("topics", "not as this build needs them", str(error))
        return
    yield Finding("topics", f"{', '.join(settings.kafka.topics)} and {settings.kafka.dead_letter_topic} are there")
    counts = {topic: topics[topic] for topic in settings.kafka.topics}
    remedy = (
        "" if len(set(counts.values())) == 1 else "give all input topics as many partitions: order is kept by partition"
    )
    yield Finding("partition parity", ", ".join(f"{topic}: {count}" for topic, count in counts.items()), remedy)
    yield await _partitioner(settings)


async def _partitioner(settings: Settings) -> Finding:
    """Whether the last records are on the partition of their key."""
    try:
        shares = await misplaced_share(settings.kafka, SAMPLE)
    except UnavailableError as error:
        return Finding("partitioner", "not checked", str(error))
    text = ", ".join(f"{topic}: {wrong} of the last {read} misplaced" for topic, (wrong, read) in shares.items())
    return Finding("partitioner", text, REMEDY if any(wrong for wrong, _ in shares.values()) else "")


async def _database(store: PostgresStore) -> AsyncIterator[Finding]:
    try:
        skew = await store.now() - datetime.now(UTC)
        revision = await store.schema_revision()
    except UnavailableError as error:
        yield Finding("PostgreSQL answers", str(error), "check CONSUMER_DATABASE__URL and the server")
        return
    yield Finding("PostgreSQL answers", "yes")
    newest = migrations.head()
    remedy = "" if revision == newest else "run `conversation-consumer migrate`"
    yield Finding("schema", f"at {revision or 'nothing'}, newest is {newest}", remedy)
    if revision is None:
        return
    remedy = "" if abs(skew) < MAX_SKEW else "set the clocks by NTP: events ahead of the database's clock are clamped"
    yield Finding("clocks", f"the database is {skew.total_seconds():+.3f} s ahead", remedy)
    overdue = await store.overdue()
    remedy = "start `conversation-consumer ticker`, or see why its ticks are not consumed" if overdue else ""
    yield Finding("deadlines", f"{overdue} passed a minute ago or longer and have no effect yet", remedy)


async def _offsets(settings: Settings, store: PostgresStore) -> Finding:
    """Whether every partition can go on where it stopped."""
    mine = [(p, o) for p, o in await store.stored_offsets() if p.group == settings.kafka.group_id]
    bounds = await log_bounds(settings.kafka, [partition for partition, _ in mine])
    async with admin(settings.kafka) as client:
        cluster_id = await client.cluster_id()
    wrong = [
        f"{partition.topic}[{partition.number}] at {offset.next_offset}"
        for partition, offset in mine
        if offset.cluster_id != cluster_id or not bounds[partition][0] <= offset.next_offset <= bounds[partition][1]
    ]
    behind = sum(bounds[partition][1] - offset.next_offset for partition, offset in mine)
    if wrong:
        return Finding("offsets", f"not in the log: {', '.join(wrong)}", "run `conversation-consumer offsets set`")
    return Finding("offsets", f"{len(mine)} partitions, {behind:,} records behind")
