"""The demo: two replicas, two rival writers and a lock holder; a naive writer on the same traffic; and a verdict."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import asyncpg
from pydantic import SecretStr
from rich.console import Console
from rich.live import Live

from consumer.decoding import encoded
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import CLOSED_BY, CONSUMER_SOURCE, Event, Outcome, Session, Status
from consumer.observability.metrics import Metrics, Sample, samples
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.checker.evidence import collect
from tests.checker.replay import History
from tests.checker.verdicts import Evidence, Ledger, Verdict, liveness, safety, truth_of_metrics
from tests.demo.contention import plot, sweep
from tests.demo.environment import (
    PARTITIONS,
    PATIENCE_SECONDS,
    POLL_SECONDS,
    SHORT,
    Stage,
    running,
    staged,
    until_all_ready,
)
from tests.demo.naive import NaiveWriter, read_along
from tests.demo.races import Duel, fight, score
from tests.demo.report import Comparison, Scene, draw, print_reports, report
from tests.demo.traffic import Traffic
from tests.demo.writers import insist, lock_holder, rival
from tests.stack.replica import Replica
from tests.stack.services import Services, services

RIVALS = 2
DUELS = 40
CHUNKS_PER_SECOND = 20
REDRAW_SECONDS = 0.5
OURS_LOST = """
    SELECT coalesce(sum(rows - version), 0) FROM conversation JOIN (
        SELECT conversation_id, count(*) AS rows FROM conversation_event GROUP BY 1
    ) AS history USING (conversation_id)"""
"""Each history row is one update, and each update is one version."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to play. `bug` is one of `planted.BUGS`: then the checker must find it."""

    seed: int
    events: int
    seconds: float
    bug: str | None = None


@dataclass(slots=True)
class Cast:
    """Everybody on stage while the demo plays."""

    stage: Stage
    plan: Plan
    ledger: Ledger
    replicas: list[Replica]
    naive: NaiveWriter
    producer: KafkaProducer
    rivals: list[ConversationService]
    metrics: Metrics
    duels: list[Duel] = field(default_factory=list)

    async def publish(self, event: Event) -> None:
        self.ledger.note(event)
        self.ledger.records += 1
        await self.producer.publish(self.stage.topic, [encoded(event)])

    async def directly(self, service: ConversationService, event: Event) -> None:
        """The same event through our service and through the naive writer, at once."""
        await asyncio.gather(insist(service, event), self.naive.apply(event))
        self.ledger.note_written(event)

    async def seen(self) -> list[Sample]:
        """The metrics of all who write through the service."""
        scraped = [sample for replica in self.replicas if not replica.is_frozen for sample in await replica.metrics()]
        return scraped + samples(self.metrics.registry)


def main(console: Console, plan: Plan) -> bool:
    """Plays once; whether every invariant held. Raises `DevstackError` where services cannot be had."""
    with services() as found:
        console.print(found.origin, highlight=False)
        return asyncio.run(demo(found, console, plan))


async def demo(found: Services, console: Console, plan: Plan) -> bool:
    ledger = Ledger()
    async with (
        staged(found, plan.bug) as stage,
        running(stage) as replicas,
        cast(stage, plan, ledger, replicas) as company,
    ):
        await play(company, console)
        metrics = await company.seen()
        codes = [await replica.stop() for replica in replicas]
        evidence = await collect(stage.kafka, stage.database)
        comparison = await compare(company, evidence)
        await print_reports(console, stage.database)
    verdicts = [*safety(ledger, evidence, SHORT.policy), *liveness(ledger, evidence)]
    if plan.bug != "guard":
        verdicts += truth_of_metrics(ledger, evidence, metrics)
    failed = tuple(f"exit code {code}" for code in codes if code)
    verdicts.append(Verdict("replicas left in good order", len(codes), failed))
    verdicts.append(
        Verdict(
            "races came out right",
            sum(s.one_first + s.other_first for s in comparison.scores),
            tuple(f"race {s.race}: {s.ours_wrong}" for s in comparison.scores if s.ours_wrong),
        )
    )
    report(console, metrics, comparison, verdicts)
    console.print(plot(await sweep(found.postgres)))
    return all(verdict.holds for verdict in verdicts)


@asynccontextmanager
async def cast(stage: Stage, plan: Plan, ledger: Ledger, replicas: list[Replica]) -> AsyncIterator[Cast]:
    metrics = Metrics()
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(KafkaProducer.open(stage.kafka))
        pool = await stack.enter_async_context(asyncpg.create_pool(stage.database, min_size=1, max_size=16))
        rivals = []
        for _ in range(RIVALS):
            settings = DatabaseSettings(url=SecretStr(stage.database))
            store = await stack.enter_async_context(PostgresStore.open(settings, metrics))
            rivals.append(ConversationService(store, policy=SHORT.policy, metrics=metrics))
        naive = NaiveWriter(pool, SHORT.policy)
        yield Cast(stage, plan, ledger, replicas, naive, producer, rivals, metrics)


async def play(company: Cast, console: Console) -> None:
    """Traffic, rivals and duels at once; then ticks for every conversation, until all have read the log to its end."""
    plan, stage, ledger = company.plan, company.stage, company.ledger
    traffic, stop = Traffic(plan.seed, ledger), asyncio.Event()
    reading = asyncio.create_task(read_along(company.naive, stage.kafka, PARTITIONS))
    watching = asyncio.create_task(watch(company, console))
    async with asyncio.TaskGroup() as group:
        for number, service in enumerate(company.rivals, start=1):
            own = Traffic(plan.seed + number, ledger)
            group.create_task(rival(f"rival-{number}", partial(company.directly, service), own, stop))
        group.create_task(lock_holder(stage.database, traffic, stop))
        directly = partial(company.directly, company.rivals[0])
        duelling = group.create_task(fight(DUELS, SHORT.policy, plan.seed, company.publish, directly))
        await publish(plan, lambda count: company.producer.publish(stage.topic, traffic.records(count)))
        company.duels = await duelling
        stop.set()
        await company.producer.publish(stage.topic, traffic.ticks())
    await stage.until_applied(ledger.records)
    await until_all_ready(company.replicas)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while company.naive.records < ledger.records:  # noqa: ASYNC110 - it reads along in its own time
            await asyncio.sleep(POLL_SECONDS)
    for task in (watching, reading):
        task.cancel()
    await asyncio.gather(watching, reading, return_exceptions=True)


async def publish(plan: Plan, send: Callable[[int], Awaitable[None]]) -> None:
    """Evenly over the time."""
    loop = asyncio.get_running_loop()
    started, sent = loop.time(), 0
    chunk = max(1, round(plan.events / plan.seconds / CHUNKS_PER_SECOND))
    while sent < plan.events:
        count = min(chunk, plan.events - sent)
        await send(count)
        sent += count
        await asyncio.sleep(max(0.0, started + sent / plan.events * plan.seconds - loop.time()))


async def watch(company: Cast, console: Console) -> None:
    """Draws both writers side by side until cancelled."""
    with Live(console=console, auto_refresh=False, transient=not console.record) as live:
        before = Scene.nothing()
        while True:
            ledger, naive = company.ledger, company.naive
            lost = int(await naive.pool.fetchval(OURS_LOST)), await naive.lost_updates()
            scene = Scene.of(await company.seen(), ledger.records + ledger.direct, naive, lost)
            live.update(draw(scene, before), refresh=console.is_terminal)
            before = scene
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


async def compare(company: Cast, evidence: Evidence) -> Comparison:
    """Ours and the naive writer's tables, once both have read everything."""
    naive = await company.naive.rows()
    ours = {key: (found.sessions, evidence.histories[key]) for key, found in evidence.conversations.items()}
    wrong = [
        key
        for key, row in naive.items()
        if row.closed_by == "timer" and ours[key][0] and ours[key][0][-1].closed_by not in (None, "timer")
    ]
    return Comparison(
        scores=score(company.duels, ours, naive, company.naive.expiries),
        naive_lost=await company.naive.lost_updates(),
        naive_double=company.naive.double_effects,
        ours_wrong_closings=sum(_reports_the_timer_instead(*told) for told in ours.values()),
        naive_wrong_closings=len(wrong),
    )
