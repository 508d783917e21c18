"""The demo: real Kafka, real PostgreSQL, two replicas, two rival writers, a lock holder, and a verdict."""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
from pydantic import SecretStr
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from consumer import migrations
from consumer.devstack.checker import Ledger, Verdict, judge
from consumer.devstack.database import new_database
from consumer.devstack.replica import Replica
from consumer.devstack.report import report
from consumer.devstack.rivals import lock_holder, rival
from consumer.devstack.services import Services, services
from consumer.devstack.topic import delete
from consumer.devstack.traffic import Traffic
from consumer.kafka import KafkaProducer, admin
from consumer.metrics import Metrics, Sample, samples
from consumer.postgres import PostgresStore
from consumer.service import ConversationService
from consumer.settings import DatabaseSettings, KafkaSettings, PolicySettings

PARTITIONS = 4
REPLICAS = 2
RIVALS = 2
CHUNKS_PER_SECOND = 20
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 60
APPLIED = "SELECT coalesce(sum(next_offset), 0) FROM kafka_offset"
SHORT = PolicySettings.model_validate(
    {
        "pending_ttl": "4s",
        "progress_ttl": "3s",
        "idle_after": "1s",
        "reclassification_window": "6s",
        "follow_up_grace": "0.5",
        "goodbye_grace": "0.2",
    }
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to play."""

    seed: int
    events: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stage:
    """Where to play: topics and a database of the demo's own."""

    kafka: KafkaSettings
    database: str
    logs: Path

    @property
    def topic(self) -> str:
        return self.kafka.topics[0]

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a replica."""
        policy = {f"CONSUMER_POLICY__{name}".upper(): str(value.total_seconds()) for name, value in SHORT}
        return policy | {
            "CONSUMER_DATABASE__URL": self.database,
            "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "CONSUMER_KAFKA__GROUP_ID": self.kafka.group_id,
            "CONSUMER_KAFKA__TOPICS": self.topic,
            "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": self.kafka.dead_letter_topic,
        }


def main(console: Console, plan: Plan) -> bool:
    """Plays once; whether every invariant held. Raises `DevstackError` where services cannot be had."""
    with console.status("starting services"), services() as found:
        console.print(found.how, highlight=False)
        return asyncio.run(demo(found, console, plan))


async def demo(found: Services, console: Console, plan: Plan) -> bool:
    ledger = Ledger()
    async with staged(found) as stage, running(stage, console) as replicas:
        own = await play(stage, console, plan, ledger)
        metrics = [sample for replica in replicas for sample in await replica.metrics()] + own
        codes = [await replica.stop() for replica in replicas]
        verdicts = await judge(ledger, stage.kafka, stage.database, SHORT.policy, metrics)
    failed = tuple(f"exit code {code}" for code in codes if code)
    verdicts.append(Verdict("replicas left in good order", len(codes), failed))
    report(console, metrics, verdicts)
    return all(verdict.holds for verdict in verdicts)


@asynccontextmanager
async def staged(found: Services) -> AsyncIterator[Stage]:
    name = f"demo-{secrets.token_hex(4)}"
    kafka = KafkaSettings(
        bootstrap_servers=found.kafka,
        group_id=name,
        topics=(f"{name}.events",),
        dead_letter_topic=f"{name}.dead-letter",
    )
    with tempfile.TemporaryDirectory(prefix="demo-") as logs:
        async with new_database(found.postgres, "demo") as database, admin(kafka) as client:
            await asyncio.to_thread(migrations.upgrade, database)
            await client.create(kafka.topics[0], PARTITIONS, 1, {})
            await client.create(kafka.dead_letter_topic, 1, 1, {"max.message.bytes": str(2 * 2**20)})
            try:
                yield Stage(kafka, database, Path(logs))
            finally:
                await delete(kafka.bootstrap_servers, *kafka.topics, kafka.dead_letter_topic)


@asynccontextmanager
async def running(stage: Stage, console: Console) -> AsyncIterator[list[Replica]]:
    """The replicas, once they are ready."""
    replicas = [await Replica(stage.settings, stage.logs / f"replica-{n}.log").start() for n in range(REPLICAS)]
    try:
        with console.status("replicas join the consumer group"):
            async with asyncio.timeout(PATIENCE_SECONDS):
                for replica in replicas:
                    while not await replica.ready():  # noqa: ASYNC110 - it is another process
                        await asyncio.sleep(POLL_SECONDS)
        yield replicas
    finally:
        for replica in replicas:
            await replica.stop()


async def play(stage: Stage, console: Console, plan: Plan, ledger: Ledger) -> list[Sample]:
    """Traffic and rivals at once, then ticks for every conversation; returns the rivals' metrics.

    Ends when the consumers have read the log to its end.
    """
    traffic, metrics, stop = Traffic(plan.seed, ledger), Metrics(), asyncio.Event()
    async with KafkaProducer.open(stage.kafka) as producer, AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for number in range(1, RIVALS + 1):
            settings = DatabaseSettings(url=SecretStr(stage.database))
            store = await stack.enter_async_context(PostgresStore.open(settings, metrics))
            service = ConversationService(store, policy=SHORT.policy, metrics=metrics)
            own_traffic = Traffic(plan.seed + number, ledger)
            group.create_task(rival(f"rival-{number}", service, own_traffic, ledger, stop))
        group.create_task(lock_holder(stage.database, traffic, stop))
        columns = (TextColumn("events published"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("", total=plan.events)
            await _publish(
                plan,
                lambda count: producer.publish(stage.topic, traffic.records(count)),
                lambda count: progress.advance(task, count),
            )
        stop.set()
        await producer.publish(stage.topic, traffic.ticks())
    with console.status("the consumers read the log to its end"):
        await _until_applied(stage.database, ledger.records)
    return samples(metrics.registry)


async def _publish(plan: Plan, publish: Callable[[int], Awaitable[None]], advance: Callable[[int], None]) -> None:
    """Evenly over the time."""
    loop = asyncio.get_running_loop()
    started, sent = loop.time(), 0
    chunk = max(1, round(plan.events / plan.seconds / CHUNKS_PER_SECOND))
    while sent < plan.events:
        count = min(chunk, plan.events - sent)
        await publish(count)
        advance(count)
        sent += count
        await asyncio.sleep(max(0.0, started + sent / plan.events * plan.seconds - loop.time()))


async def _until_applied(database: str, records: int) -> None:
    connection = await asyncpg.connect(database)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await connection.fetchval(APPLIED) < records:  # noqa: ASYNC110 - other processes move it
                await asyncio.sleep(POLL_SECONDS)
    finally:
        await connection.close()
