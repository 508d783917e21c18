"""The demo: two replicas, two concurrent writers and a lock holder; a naive writer on the same traffic; a verdict."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import asyncpg
from pydantic import SecretStr

from consumer.decoding import encoded
from consumer.history.replay import History
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import CLOSED_BY, CONSUMER_SOURCE, Event, Outcome, Session, Status
from consumer.observability.metrics import Metrics, Sample, samples
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.checker.evidence import collect, transitions
from tests.checker.ledger import Evidence, Ledger, Verdict
from tests.checker.verdicts import liveness, safety, truth_of_metrics
from tests.demo.contention import sweep
from tests.demo.downstream import Downstream
from tests.demo.environment import (
    PARTITIONS,
    POLL_SECONDS,
    WAIT_SECONDS,
    Environment,
    Relays,
    prepared,
    relaying,
    running,
    until_all_ready,
)
from tests.demo.naive import NaiveWriter, read_along
from tests.demo.races import Race, run_races, score
from tests.demo.report import Comparison, Result, Stream, analysts_views
from tests.demo.view import Moment, View
from tests.demo.writers import apply_until_written, concurrent_writer, lock_holder
from tests.stack.replica import Replica
from tests.stack.services import Services, services
from tests.traffic import SHORT_POLICY, Traffic

WRITERS = 2
RACES_EACH = 40
CHUNKS_PER_SECOND = 20
REDRAW_SECONDS = 0.5
OURS = """
    SELECT coalesce(sum(rows - version), 0)::bigint, coalesce(sum(rows - identities), 0)::bigint
    FROM conversation JOIN (
        SELECT conversation_id, count(*) AS rows, count(DISTINCT (source, event_id)) AS identities
        FROM conversation_event GROUP BY 1
    ) AS history USING (conversation_id)"""
"""Each history row is one update, and each update is one version; an event twice in the history had two effects."""


@dataclass(frozen=True, slots=True)
class Options:
    """What to play. `bug` is one of `planted.BUGS`: then the checker must find it."""

    seed: int
    events: int
    seconds: float
    bug: str | None = None


@dataclass(slots=True)
class Participants:
    """Everybody who writes while the demo runs."""

    environment: Environment
    options: Options
    ledger: Ledger
    replicas: list[Replica]
    naive: NaiveWriter
    producer: KafkaProducer
    writers: list[ConversationService]
    metrics: Metrics
    races: list[Race] = field(default_factory=list)

    async def publish(self, event: Event) -> None:
        self.ledger.note(event)
        self.ledger.records += 1
        await self.producer.publish(self.environment.topic, [encoded(event)])

    async def apply_directly(self, service: ConversationService, event: Event) -> None:
        """The same event through our service and through the naive writer, at once."""
        await asyncio.gather(apply_until_written(service, event), self.naive.apply(event))
        self.ledger.note_written(event)

    async def scraped(self) -> list[Sample]:
        """The metrics of all who write through the service."""
        found = [sample for replica in self.replicas if not replica.is_frozen for sample in await replica.metrics()]
        return found + samples(self.metrics.registry)


def main(view: View, options: Options) -> Result:
    """Runs once. Raises `DevstackError` where services cannot be had."""
    view.step("starting Kafka and PostgreSQL")
    with services() as found:
        view.note(found.origin)
        return asyncio.run(demo(found, view, options))


async def demo(found: Services, view: View, options: Options) -> Result:
    ledger = Ledger()
    view.step("starting two replicas")
    async with (
        prepared(found, options.bug) as environment,
        running(environment) as replicas,
        relaying(environment) as relays,
        participants(environment, options, ledger, replicas) as everybody,
    ):
        await write(everybody, relays, view)
        metrics = await everybody.scraped()
        view.step("stopping the replicas")
        codes = [await replica.stop() for replica in replicas]
        await relays.until_all_is_published()
        codes += await relays.stop()
        view.step("collecting what they left behind")
        evidence = await collect(environment.kafka, environment.database)
        downstream = Downstream()
        downstream.read(await transitions(environment.kafka))
        comparison = await compare(everybody, evidence)
        views = await analysts_views(environment.database)
    view.step("judging it")
    verdicts = await asyncio.to_thread(judge, options, ledger, evidence, metrics, comparison, codes)
    agreement = downstream.agrees(evidence.conversations)
    verdicts.append(agreement)
    stream = Stream(len(downstream.known), downstream.repeats, relays.kills, len(agreement.violations))
    view.step("measuring contention: 1 to 16 writers on 10 conversations")
    return Result(options, ledger, metrics, comparison, verdicts, stream, views, await sweep(found.postgres))


def judge(
    options: Options,
    ledger: Ledger,
    evidence: Evidence,
    metrics: list[Sample],
    comparison: Comparison,
    codes: Sequence[int],
) -> list[Verdict]:
    verdicts = [*safety(ledger, evidence, SHORT_POLICY.policy), *liveness(ledger, evidence)]
    if options.bug != "guard":
        verdicts += truth_of_metrics(ledger, evidence, metrics)
    failed = tuple(f"exit code {code}" for code in codes if code)
    wrong = tuple(f"race {score.kind}: {score.ours_wrong}" for score in comparison.scores if score.ours_wrong)
    return [
        *verdicts,
        Verdict("processes left in good order", len(codes), failed),
        Verdict("races came out right", comparison.races, wrong),
    ]


@asynccontextmanager
async def participants(
    environment: Environment, options: Options, ledger: Ledger, replicas: list[Replica]
) -> AsyncIterator[Participants]:
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(KafkaProducer.open(environment.kafka))
        pool = await stack.enter_async_context(asyncpg.create_pool(environment.database, min_size=1, max_size=16))
        writers = []
        for _ in range(WRITERS):
            settings = DatabaseSettings(url=SecretStr(environment.database))
            store = await stack.enter_async_context(PostgresStore.open(settings, metrics))
            writers.append(ConversationService(store, policy=SHORT_POLICY.policy, metrics=metrics))
        naive = NaiveWriter(pool, SHORT_POLICY.policy)
        yield Participants(environment, options, ledger, replicas, naive, producer, writers, metrics)


async def write(everybody: Participants, relays: Relays, view: View) -> None:
    """Traffic, concurrent writers and races at once; then ticks for all, until both have read the log to its end."""
    options, environment, ledger = everybody.options, everybody.environment, everybody.ledger
    traffic, stop = Traffic(options.seed, ledger), asyncio.Event()
    reading, watching = read_along(everybody.naive, environment.kafka, PARTITIONS), watch(everybody, view)
    async with beside(reading, watching):
        async with asyncio.TaskGroup() as group:
            for number, service in enumerate(everybody.writers, start=1):
                own = Traffic(options.seed + number, ledger)
                apply = partial(everybody.apply_directly, service)
                group.create_task(concurrent_writer(f"writer-{number}", apply, own, stop))
            group.create_task(lock_holder(environment.database, traffic.hot, stop))
            directly = partial(everybody.apply_directly, everybody.writers[0])
            racing = group.create_task(
                run_races(RACES_EACH, SHORT_POLICY.policy, options.seed, everybody.publish, directly)
            )
            await publish(options, lambda count: everybody.producer.publish(environment.topic, traffic.records(count)))
            everybody.races = await racing
            stop.set()
            await relays.spare()
            await everybody.producer.publish(environment.topic, traffic.ticks())
        await environment.until_applied(ledger.records)
        await until_all_ready(everybody.replicas)
        async with asyncio.timeout(WAIT_SECONDS):
            while everybody.naive.records < ledger.records:  # noqa: ASYNC110 - it reads along in its own time
                await asyncio.sleep(POLL_SECONDS)
    view.end_moments()


@asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Goes on with it until the end of the block, however that ends: nothing of it outlives what it uses."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def publish(options: Options, send: Callable[[int], Awaitable[None]]) -> None:
    """Evenly over the time."""
    loop = asyncio.get_running_loop()
    started, sent = loop.time(), 0
    chunk = max(1, round(options.events / options.seconds / CHUNKS_PER_SECOND))
    while sent < options.events:
        count = min(chunk, options.events - sent)
        await send(count)
        sent += count
        await asyncio.sleep(max(0.0, started + sent / options.events * options.seconds - loop.time()))


async def watch(everybody: Participants, view: View) -> None:
    """Shows both writers side by side until cancelled."""
    ledger, naive = everybody.ledger, everybody.naive
    while True:
        ours_lost, ours_double = await naive.pool.fetchrow(OURS)
        sent = ledger.records + ledger.direct
        view.show(
            Moment.of(
                await everybody.scraped(),
                sent=sent,
                ours=(ours_lost, ours_double),
                naive=(await naive.lost_updates(), naive.double_effects),
                naive_applied=naive.acknowledged.total(),
            )
        )
        await asyncio.sleep(REDRAW_SECONDS)


def _reports_the_timer_instead(sessions: Sequence[Session], history: History) -> bool:
    """Whether the last session is reported as expired although somebody closed it."""
    return (
        any(
            row.outcome in (Outcome.APPLIED, Outcome.RECLASSIFIED)
            for row, _ in history
            if row.session == sessions[-1].number and row.source != CONSUMER_SOURCE and not row.to_status.is_open
        )
        and sessions[-1].closed_by == CLOSED_BY[Status.EXPIRED]
    )


async def compare(everybody: Participants, evidence: Evidence) -> Comparison:
    """Ours and the naive writer's tables, once both have read everything."""
    naive = await everybody.naive.rows()
    ours = {key: (found.sessions, evidence.histories[key]) for key, found in evidence.conversations.items()}
    wrong = [
        key
        for key, row in naive.items()
        if row.closed_by == "timer" and ours[key][0] and ours[key][0][-1].closed_by not in (None, "timer")
    ]
    return Comparison(
        scores=score(everybody.races, ours, naive, everybody.naive.expiries),
        naive_lost=await everybody.naive.lost_updates(),
        naive_double=everybody.naive.double_effects,
        ours_wrong_closings=sum(_reports_the_timer_instead(*one) for one in ours.values()),
        naive_wrong_closings=len(wrong),
    )
