"""`doctor`: is everything in place? Checks in the order in which they depend on each other, each with its remedy."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import typer

from consumer import settings as configuration
from consumer.commands.output import marked, out
from consumer.errors import ConsumerError
from consumer.kafka.admin import admin, check_topics, log_bounds, misplaced_share, transition_limit
from consumer.kafka.placement import REMEDY
from consumer.observability import logs
from consumer.offsets import Partition, StoredOffset
from consumer.outbox import MAX_COUNTED
from consumer.postgres import migrations
from consumer.postgres.distribution import COLUMN, Layout
from consumer.postgres.server_settings import advised
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import REQUIRED_REVISION
from consumer.settings import KafkaSettings, Settings

SAMPLE = 200
"""Records of each partition whose place is checked."""
MAX_SKEW = timedelta(seconds=1)
MAX_OUTBOX_SECONDS = 60.0
app = typer.Typer(add_completion=False)


@app.command()
def doctor() -> None:
    """Check that everything is in place, and say what to do where it is not. Exit code 1 if something is amiss.

    What is marked ! works, and could be cheaper: that alone is exit code 0.
    """
    settings = configuration.load()
    # A finding says what went wrong. Nothing that is logged on the way to it says more.
    logs.configure(settings.log.model_copy(update={"level": "critical"}))
    raise typer.Exit(0 if asyncio.run(_print_findings(settings)) else 1)


async def _print_findings(settings: Settings) -> bool:
    """Whether all is well."""
    healthy = True
    findings = examine(settings)
    try:
        async for finding in findings:
            healthy = healthy and not finding.remedy
            _print(finding)
    finally:
        await findings.aclose()  # type: ignore[attr-defined]
    return healthy


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check saw; `remedy` is empty where nothing is amiss. `advice` is what could be better: no failure."""

    check: str
    seen: str
    remedy: str = ""
    advice: str = ""


def _print(finding: Finding) -> None:
    mark, style = ("✗", "red") if finding.remedy else ("!", "yellow") if finding.advice else ("✓", "green")
    out.print(marked(f"{mark} ", style, f"{finding.check}: {finding.seen}", out.width), soft_wrap=True)
    if hint := finding.remedy or finding.advice:
        out.print(marked("  → ", "", hint, out.width), soft_wrap=True)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """All findings; those that need Kafka or the database are left out where it does not answer."""
    kafka_answers = False
    async for finding in _kafka(settings):
        kafka_answers = kafka_answers or not finding.remedy
        yield finding
    async with PostgresStore.open(settings.database) as store:
        async for finding in _database(store, settings if kafka_answers else None):
            yield finding


async def _asked(check: str, finding: Awaitable[Finding]) -> Finding:
    """An answer that does not come keeps no other back."""
    try:
        return await finding
    except ConsumerError as error:
        return Finding(check, "not checked", str(error))


async def _kafka(settings: Settings) -> AsyncIterator[Finding]:
    try:
        async with admin(settings.kafka) as client:
            yield Finding("Kafka answers", f"cluster {await client.cluster_id()}")
            topics = await client.topics()
    except ConsumerError as error:
        yield Finding("Kafka answers", "no", str(error))
        return
    yield await _topics(settings.kafka)
    if any(topic not in topics for topic in settings.kafka.topics):
        return
    counts = {topic: topics[topic] for topic in settings.kafka.topics}
    remedy = (
        "" if len(set(counts.values())) == 1 else "give all input topics as many partitions: order is kept by partition"
    )
    yield Finding("partition parity", ", ".join(f"{topic}: {count}" for topic, count in counts.items()), remedy)
    yield await _asked("partitioner", _partitioner(settings))


async def _topics(kafka: KafkaSettings) -> Finding:
    try:
        await check_topics(kafka, kafka.transition_topic)
        await transition_limit(kafka)
    except ConsumerError as error:
        return Finding("topics", "not as this build needs them", str(error))
    return Finding("topics", f"{', '.join((*kafka.topics, kafka.dead_letter_topic, kafka.transition_topic))} are there")


async def _partitioner(settings: Settings) -> Finding:
    """Whether the last records are on the partition of their key."""
    shares = await misplaced_share(settings.kafka, SAMPLE)
    text = ", ".join(f"{topic}: {wrong} of the last {read} misplaced" for topic, (wrong, read) in shares.items())
    return Finding("partitioner", text, REMEDY if any(wrong for wrong, _ in shares.values()) else "")


async def _database(store: PostgresStore, to_compare: Settings | None) -> AsyncIterator[Finding]:
    """`to_compare`: of the log that the stored offsets are compared with, if it can be."""
    try:
        skew = await store.now() - datetime.now(UTC)
        revision, standby = await store.schema_revision(), await store.is_standby()
        layout = await store.layout()
    except ConsumerError as error:
        yield Finding("PostgreSQL answers", "no", str(error))
        return
    remedy = "have CONSUMER_DATABASE__URL name the primary" if standby else ""
    yield Finding("PostgreSQL answers", "yes, but it is a standby and takes no writes" if standby else "yes", remedy)
    yield _schema(revision, migrations.head())
    if revision is None or revision < REQUIRED_REVISION:
        return
    if layout is not None:
        yield _distribution(layout)
    remedy = "" if abs(skew) < MAX_SKEW else "set the clocks by NTP: events ahead of the database's clock are clamped"
    yield Finding("clocks", _ahead(skew.total_seconds()), remedy)
    yield await _asked("deadlines", _deadlines(store))
    yield await _asked("outbox", _outbox(store))
    async for finding in _server_settings(store):
        yield finding
    if to_compare:
        yield await _asked("offsets", _offsets(to_compare, store))


async def _deadlines(store: PostgresStore) -> Finding:
    overdue = await store.overdue()
    remedy = "start `conversation-consumer ticker`, or see why its ticks are not consumed" if overdue else ""
    return Finding("deadlines", f"{overdue} passed a minute ago or longer and have no effect yet", remedy)


def _distribution(layout: Layout) -> Finding:
    """On a server with the extension Citus: whether each conversation lies whole on one worker that answers."""
    if layout.missing:
        text = f"not distributed by {COLUMN}: {', '.join(layout.missing)}"
        return Finding("Citus", text, "run `conversation-consumer migrate citus`")
    if layout.apart:
        remedy = "run undistribute_table on them, then `conversation-consumer migrate citus`"
        return Finding("Citus", f"not with their conversations: {', '.join(layout.apart)}", remedy)
    if layout.inactive:
        return Finding("Citus", f"inactive: {', '.join(layout.inactive)}", "run citus_activate_node on the coordinator")
    return Finding("Citus", f"{layout.shards} shards on {len(layout.active)} workers")


async def _outbox(store: PostgresStore) -> Finding:
    backlog = await store.backlog()
    waits = backlog.oldest_seconds > MAX_OUTBOX_SECONDS
    remedy = "start `conversation-consumer outbox`, or see why it cannot publish" if waits else ""
    some = "at least " if backlog.rows >= MAX_COUNTED else ""
    wait = "transition waits" if backlog.rows == 1 else "transitions wait"
    text = f"{some}{backlog.rows:,} {wait}, the oldest for {backlog.oldest_seconds:.0f} s"
    return Finding("outbox", text if backlog.rows else "no transition waits", remedy)


def _ahead(seconds: float) -> str:
    return f"the database is {abs(seconds):.3f} s {'ahead' if seconds >= 0 else 'behind'}"


async def _server_settings(store: PostgresStore) -> AsyncIterator[Finding]:
    try:
        settings = await store.server_settings()
    except ConsumerError as error:
        yield Finding("server settings", "not checked", str(error))
        return
    for one in advised(settings):
        advice = f"{one.recommended} is recommended: {one.why}" if one.recommended else ""
        yield Finding(one.setting.name, one.setting.shown, advice=advice)


def _schema(revision: str | None, newest: str) -> Finding:
    if revision is not None and revision > newest:
        return Finding("schema", f"at {revision}, newer than the {newest} of this build: fine")
    remedy = "" if revision == newest else "run `conversation-consumer migrate`"
    return Finding("schema", f"at {revision or 'nothing'}, newest is {newest}", remedy)


async def _offsets(settings: Settings, store: PostgresStore) -> Finding:
    """Whether every partition can go on where it stopped."""
    stored = {p: o for p, o in await store.stored_offsets() if p.group == settings.kafka.group_id}
    if not stored:
        return Finding("offsets", f"none stored for group {settings.kafka.group_id}: no replica has run yet")
    async with admin(settings.kafka) as client:
        cluster_id, topics = await client.cluster_id(), await client.topics()
    there = [partition for partition in stored if partition.number < topics.get(partition.topic, 0)]
    bounds = await log_bounds(settings.kafka, there)
    found = _compared({partition: stored[partition] for partition in there}, bounds, cluster_id)
    gone = len(stored) - len(there)  # what nobody can be assigned harms nobody
    return replace(found, seen=f"{found.seen}; {gone} of partitions that are gone") if gone else found


def _compared(
    stored: dict[Partition, StoredOffset], bounds: dict[Partition, tuple[int, int]], cluster_id: str
) -> Finding:
    misfits, behind = [], 0
    for partition, offset in stored.items():
        first, end = bounds[partition]
        if offset.cluster_id != cluster_id or not first <= offset.next_offset <= end:
            misfits.append(f"{partition.topic}[{partition.number}] at {offset.next_offset}")
        behind += max(0, end - offset.next_offset)
    if misfits:
        remedy = "run `conversation-consumer offsets show`, then `offsets set TOPIC PARTITION OFFSET --yes`"
        return Finding("offsets", f"not in the log: {', '.join(misfits)}", remedy)
    return Finding("offsets", f"{len(stored)} partitions, {behind:,} records behind")
