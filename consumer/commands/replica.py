"""The composition root of a replica, a ticker and a relay: wiring, the one place that sees every technology."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import structlog

from consumer.commands.query import check_schema
from consumer.commands.signals import stop_on_signals
from consumer.errors import ConsumerError
from consumer.kafka.admin import check_topics, transition_limit
from consumer.kafka.bulk import BulkProducer, TickProducer
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.producer import KafkaProducer
from consumer.kafka.source import KafkaSource
from consumer.observability.health import Health
from consumer.observability.http import serve
from consumer.observability.metrics import Metrics, Part
from consumer.observability.tracing import tracing
from consumer.outbox import OutboxRelay
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService, RetryPolicy
from consumer.settings import DatabaseSettings, Settings
from consumer.ticker import Ticker
from consumer.worker import PartitionWorker

GARBAGE_THRESHOLD = 200_000
log = structlog.get_logger(__name__)


async def consume(settings: Settings, store_class: type[PostgresStore] = PostgresStore) -> None:
    """One replica, from its checks to its last commit."""
    traces = tracing(settings.tracing, version("conversation-consumer"))
    metrics, health = Metrics(settings.kafka.topics, parts=Part.REPLICA, trace_id=traces.trace_id), Health()
    max_record_bytes = await check_topics(settings.kafka)
    async with (
        store_class.open(settings.database, metrics) as store,
        KafkaProducer.open(settings.kafka, max_record_bytes) as dead_letters,
        beside(watch_event_loop(metrics)),
    ):
        await check_schema(store)
        service = service_of(settings, store, metrics)

        def run_worker(partition: AssignedPartition) -> Awaitable[None]:
            return PartitionWorker(
                partition,
                service,
                store,
                dead_letters,
                settings=settings.worker,
                metrics=metrics,
                health=health,
                tracing=traces,
            ).run()

        source = KafkaSource(settings.kafka, settings.worker, metrics, health, run_worker)
        collect_garbage_seldom()
        names = {"topics": settings.kafka.topics, "group": settings.kafka.group_id}
        await run_until_stopped(source, settings, store, metrics, health, event="started", **names)
    log.info("stopped")


def service_of(settings: Settings, store: PostgresStore, metrics: Metrics) -> ConversationService:
    return ConversationService(
        store,
        policy=settings.policy.policy,
        retry=RetryPolicy(**settings.retry.model_dump()),
        metrics=metrics,
        writers=settings.database.writers,
    )


async def tick(settings: Settings) -> None:
    """One ticker; several share the work."""
    metrics, health = Metrics(parts=Part.TICKER_PROCESS), Health(joined=True)
    topic = settings.kafka.topics[0]
    await check_topics(settings.kafka)
    async with (
        PostgresStore.open(settings.database, metrics) as store,
        TickProducer.open(settings.kafka, topic) as producer,
    ):
        await check_schema(store)
        ticking = Ticker(store, producer, settings.ticker, metrics, health)
        await run_until_stopped(ticking, settings, store, metrics, health, event="ticking", topic=topic)
    log.info("stopped")


async def relay(settings: Settings) -> None:
    """One outbox relay; several take turns."""
    metrics, health = Metrics(parts=Part.OUTBOX_PROCESS), Health(joined=True)
    topic = settings.kafka.transition_topic
    max_message_bytes = await transition_limit(settings.kafka)
    async with (
        PostgresStore.open(settings.database, metrics) as store,
        BulkProducer.open(settings.kafka, topic, max_message_bytes) as producer,
    ):
        await check_schema(store)
        relaying = OutboxRelay(store, producer.publish, settings=settings.outbox, metrics=metrics, health=health)
        await run_until_stopped(relaying, settings, store, metrics, health, event="relaying", topic=topic)
    log.info("stopped")


Work = KafkaSource | Ticker | OutboxRelay


async def run_until_stopped(
    work: Work, settings: Settings, store: PostgresStore, metrics: Metrics, health: Health, **facts: object
) -> None:
    """Runs it until SIGTERM or SIGINT, beside its pages. The log begins with these facts."""
    metrics.build_info.labels(version("conversation-consumer")).set(1)
    metrics.ready.set_function(lambda: not health.not_ready())
    async with (
        serve(settings.http, metrics, health, store.answers) as ports,
        beside(end_silent_sessions(store, settings.database)),
    ):
        stop_on_signals(work.stop)
        log.info(**ports._asdict(), **facts)
        await work.run()


def collect_garbage_seldom() -> None:
    """What is there by now stays; what a batch makes is freed without the collector, which took a third of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 100)


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Does this work for as long as the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(ended, Exception):
            raise ended


async def end_silent_sessions(store: PostgresStore, settings: DatabaseSettings) -> None:
    """Frees what a process held that froze, or lost its network, within a statement."""
    while True:
        await asyncio.sleep(settings.command_timeout_seconds / 3)
        try:
            ended = await store.end_silent_sessions(settings.command_timeout_seconds)
        except ConsumerError as error:
            log.debug("sessions of silent clients cannot be ended", error=str(error))
        else:
            if ended:
                log.warning("sessions of silent clients ended", count=ended)


async def watch_event_loop(metrics: Metrics) -> None:
    while True:
        due = time.monotonic() + 1
        await asyncio.sleep(1)
        metrics.event_loop_lag.set(time.monotonic() - due)
