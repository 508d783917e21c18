"""The rig: three brokers, a primary with its standby, proxies before them, and everybody who reads and writes."""

import asyncio
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumer.kafka.admin import admin, log_bounds
from consumer.kafka.partition import to_record
from consumer.offsets import Partition
from consumer.postgres import migrations
from consumer.records import Record
from consumer.settings import KafkaSettings
from tests.chaos.deployment import Deployment, Member
from tests.chaos.sender import Caller, Sender, Written
from tests.checker.ledger import Ledger
from tests.demo.environment import TRAIL, settings_of
from tests.stack.broker import delete, read_all
from tests.stack.database import execute
from tests.stack.kafka_cluster import KafkaCluster
from tests.stack.postgres_pair import PostgresPair
from tests.stack.programs import missing
from tests.traffic import Mix, Traffic

PARTITIONS = 6
REPLICATION = 3
REPLICAS = 3
CALLERS = 2
SESSION_SECONDS = 4.0
COMMITTED = "SELECT pg_logical_emit_message(true, 'chaos', 'lost')"
"""Something that a failover loses, whatever else happens."""
OFFSETS = "SELECT partition, next_offset FROM kafka_offset"
DEAD_LETTER_CONFIGS = {"max.message.bytes": str(2 * 2**20)}
DEAD_LETTER_BROKER = 2
CANARY = "canary-7f3a9c"
"""The password in the database's URL: it may appear in no log and on no page."""


@dataclass(frozen=True, slots=True)
class Services:
    """What runs for as long as the rig does; topics and database are new for each storm."""

    kafka: KafkaCluster
    postgres: PostgresPair


@asynccontextmanager
async def services() -> AsyncIterator[Services]:
    """Raises `DevstackError` where they cannot be had."""
    movable_clock = missing("faketime") is None
    async with KafkaCluster.open() as kafka, PostgresPair.open(movable_clock=movable_clock) as postgres:
        yield Services(kafka, postgres)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a storm is laid out: the pace of its traffic, its shape, and who takes part."""

    seed: int
    rate: float = 300.0
    mix: Mix = field(default_factory=lambda: Mix(cold=400, hot=6))
    modules: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Replica -> what it runs instead of the consumer."""
    settings: Mapping[str, str] = field(default_factory=dict)
    ddl: tuple[str, ...] = ()
    """Done to the database before all else."""
    dead_letters_on_one_broker: bool = False


class Rig:
    """One storm's environment; its participants write within `at_work`."""

    def __init__(self, found: Services, plan: Plan, kafka: KafkaSettings, database: str, logs: Path) -> None:
        self.brokers = found.kafka
        self.postgres = found.postgres
        self.plan = plan
        self.rng = Random(plan.seed)
        self.ledger = Ledger()
        self.written = Written(self.ledger)
        self.kafka = kafka
        """As the rig itself reaches the brokers: past the proxies."""
        self.logs = logs
        self.struck = Counter[str]()
        self.rewinds = 0
        self.read: list[Record] = []
        """Records that retention took after they were read."""
        self.unread: list[Record] = []
        """Records that retention took before."""
        self.pages: list[str] = []
        """What replicas, ticker and relays say of themselves at the end."""
        self.promises = 0
        """How often faults looked at what they promise."""
        self.broken: list[str] = []
        self._database = urlsplit(database).path
        settings = self.settings
        self.replicas = Deployment("replica", settings, logs, "consumer", "run", count=REPLICAS, modules=plan.modules)
        self.tickers = Deployment("ticker", settings, logs, "consumer", "ticker", count=1)
        self.relays = Deployment("relay", settings, logs, "consumer", "outbox", count=2)
        self.traffic = Traffic(plan.seed, self.ledger, plan.mix)
        self.sender = Sender(kafka, self.traffic, plan.rate)

    @property
    def database(self) -> str:
        """The database of the primary of now, past the proxy."""
        return urlsplit(self.postgres.primary.dsn)._replace(path=self._database).geturl()

    @property
    def proxied_database(self) -> str:
        """As everybody else reaches it."""
        parts = urlsplit(self.postgres.dsn)
        netloc = f"{parts.username}:{CANARY}@{parts.hostname}:{parts.port}"
        return parts._replace(netloc=netloc, path=self._database).geturl()

    @property
    def deployments(self) -> tuple[Deployment, ...]:
        return self.replicas, self.tickers, self.relays

    @asynccontextmanager
    async def any_replica(self) -> AsyncIterator[Member]:
        """For one fault at a time."""
        async with self._any_of(self.replicas.members) as member:
            yield member

    @asynccontextmanager
    async def any_member(self) -> AsyncIterator[Member]:
        """A replica, a relay or the ticker, for one fault at a time."""
        async with self._any_of([member for deployment in self.deployments for member in deployment.members]) as member:
            yield member

    @asynccontextmanager
    async def _any_of(self, members: Sequence[Member]) -> AsyncIterator[Member]:
        member = self.rng.choice([member for member in members if not member.taken.locked()] or members)
        async with member.taken:
            yield member

    @property
    def settings(self) -> dict[str, str]:
        """The environment of replicas, ticker and relays."""
        proxied = self.kafka.model_copy(update={"bootstrap_servers": self.brokers.bootstrap_servers})
        return {
            **settings_of(proxied, self.proxied_database),
            "CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS": "3",
            "CONSUMER_DATABASE__COMMAND_TIMEOUT_SECONDS": "4",
            "CONSUMER_KAFKA__REBALANCE_TIMEOUT_SECONDS": "6",
            "CONSUMER_KAFKA__REQUEST_TIMEOUT_SECONDS": "5",
            "CONSUMER_OUTBOX__TURN_SECONDS": "6",
            "CONSUMER_OUTBOX__OUTAGE_BACKOFF_MAX_SECONDS": "1",
            "CONSUMER_WORKER__OUTAGE_BACKOFF_MAX_SECONDS": "1",
            **self.plan.settings,
        }

    @property
    def crashes(self) -> list[tuple[str, int]]:
        """Who ended by itself, and with which exit code."""
        names = ("replica", "ticker", "relay")
        pairs = zip(names, self.deployments, strict=True)
        return [(name, code) for name, deployment in pairs for code in deployment.crashes]

    @property
    def strikes(self) -> int:
        return self.struck.total()

    def expect(self, held: bool, what: str) -> None:
        """A fault's own promise: part of the verdict."""
        self.promises += 1
        if not held:
            self.broken.append(what)

    @asynccontextmanager
    async def deadline(self, seconds: float, what: str) -> AsyncIterator[None]:
        """Ends the block after so long; then the promise is broken."""
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            self.expect(False, what)
        else:
            self.expect(True, what)

    async def read_pages(self) -> None:
        replicas = [member.replica for deployment in self.deployments for member in deployment.members]
        self.pages = [(await replica.get(page))[1] for replica in replicas for page in ("/status", "/metrics")]

    def keep_logs(self) -> Path:
        """Saves the logs from going with the rig; where they are then."""
        return Path(shutil.copytree(self.logs, tempfile.mkdtemp(prefix="chaos-logs-"), dirs_exist_ok=True))

    async def fail_over(self) -> int:
        """To a standby that lacks what was committed in the last second; how many bytes of WAL that is, at least."""
        began = asyncio.get_running_loop().time()
        self.rewinds += 1
        self.postgres.hold_back()
        await execute(self.database, COMMITTED)
        lost = await self.postgres.failover(lose_commits=True)
        # What was on its way to the standby when it was held back is lost as well.
        self.written.take_back(began - 1)
        await self.postgres.rebuild()
        return lost

    async def keep_log(self, partition: int, unread_from: int, end: int) -> None:
        """Notes what retention is about to take from a partition: everything before `end`."""
        for record in await read_all(self.kafka, self.kafka.topics[0]):
            if record.partition == partition and record.offset < end:
                (self.unread if record.offset >= unread_from else self.read).append(to_record(record))

    async def log_ends(self) -> dict[int, int]:
        """Partition -> the offset after its last record."""
        places = [Partition(self.kafka.group_id, self.kafka.topics[0], number) for number in range(PARTITIONS)]
        return {place.number: end for place, (_, end) in (await log_bounds(self.kafka, places)).items()}

    async def offsets(self) -> dict[int, int]:
        """Partition -> the stored offset."""
        return dict(await self.fetch(OFFSETS))

    async def is_past(self, ends: Mapping[int, int]) -> bool:
        """Whether all before these ends is applied."""
        offsets = await self.offsets()
        return all(offsets.get(partition, 0) >= end for partition, end in ends.items())

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """Asks the primary, past the proxy."""
        connection = await asyncpg.connect(self.database)
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Everybody writes and reads; after the block nobody writes, and the readers go on."""
        callers = [Caller(f"caller-{n}", self.callers_traffic(n), self.written, rate=3.0) for n in range(CALLERS)]
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sender.run())
            for caller in callers:
                tasks.create_task(caller.run(self.proxied_database))
            try:
                yield
            finally:
                self.sender.stop()
                for caller in callers:
                    caller.stop()

    def callers_traffic(self, number: int) -> Traffic:
        return Traffic(self.plan.seed + number + 1, self.ledger, self.plan.mix)


async def _create_dead_letter_topic(kafka: KafkaSettings) -> None:
    """On one broker alone, so that it can be away while the other topics are not."""
    placed = NewTopic(
        kafka.dead_letter_topic,
        -1,
        -1,
        {0: [DEAD_LETTER_BROKER]},
        topic_configs={**DEAD_LETTER_CONFIGS, "min.insync.replicas": "1"},
    )
    client = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await client.start()
    try:
        await client.create_topics([placed])
    finally:
        await client.close()


@asynccontextmanager
async def _new_database(postgres: PostgresPair) -> AsyncIterator[str]:
    """Its URL; dropped at the primary of then."""
    name = f"chaos_{secrets.token_hex(8)}"
    await execute(postgres.primary.dsn, f"CREATE DATABASE {name}")
    try:
        yield urlsplit(postgres.primary.dsn)._replace(path=f"/{name}").geturl()
    finally:
        await execute(postgres.primary.dsn, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def prepared(found: Services, plan: Plan) -> AsyncIterator[Rig]:
    """Topics and a database of its own, with the schema; gone after the block."""
    name = f"chaos-{secrets.token_hex(4)}"
    kafka = KafkaSettings(
        bootstrap_servers=found.kafka.direct_servers,
        group_id=name,
        topics=(f"{name}.events",),
        dead_letter_topic=f"{name}.dead-letter",
        transition_topic=f"{name}.transition",
        request_timeout_seconds=5,
        session_timeout_seconds=SESSION_SECONDS,
    )
    with tempfile.TemporaryDirectory(prefix="chaos-") as logs:
        async with _new_database(found.postgres) as database, admin(kafka) as client:
            await client.create(kafka.topics[0], PARTITIONS, REPLICATION, {})
            await client.create(kafka.transition_topic, PARTITIONS, REPLICATION, {})
            if plan.dead_letters_on_one_broker:
                await _create_dead_letter_topic(kafka)
            else:
                await client.create(kafka.dead_letter_topic, 1, REPLICATION, DEAD_LETTER_CONFIGS)
            await asyncio.to_thread(migrations.upgrade, database)
            for statement in (TRAIL, *plan.ddl):
                await execute(database, statement)
            rig = Rig(found, plan, kafka, database, Path(logs))
            try:
                yield rig
            finally:
                await asyncio.gather(*(deployment.stop() for deployment in rig.deployments), return_exceptions=True)
                await delete(kafka.bootstrap_servers, *kafka.topics, kafka.dead_letter_topic, kafka.transition_topic)
