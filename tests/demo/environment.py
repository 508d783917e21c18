"""The environment of the demo: topics, a database and replicas of its own, gone when it ends."""

import asyncio
import secrets
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from consumer.kafka.admin import admin
from consumer.settings import KafkaSettings
from tests.checker.planted import NO_PRIMARY_KEY, OF_THE_OTHERS
from tests.demo.naive import CREATE
from tests.stack.broker import delete
from tests.stack.database import APPLIED, execute, migrate, new_database
from tests.stack.replica import Replica
from tests.stack.services import Services
from tests.traffic import SHORT_POLICY_VARIABLES

PARTITIONS = 4
REPLICAS = 2
RELAYS = 2
KILL_SECONDS = 5.0
UNPUBLISHED = "SELECT count(*) FROM transition_outbox"
POLL_SECONDS = 0.1
WAIT_SECONDS = 90
SESSION_SECONDS = 4.0
TRAIL = """
    CREATE TABLE offset_trail (
        id bigserial, transaction xid8 DEFAULT pg_current_xact_id(),
        topic text, partition int, before bigint, after bigint, at timestamptz DEFAULT clock_timestamp()
    );
    CREATE FUNCTION leave_trail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        INSERT INTO offset_trail (topic, partition, before, after)
        VALUES (new.topic, new.partition, old.next_offset, new.next_offset);
        RETURN NULL;
    END $$;
    CREATE TRIGGER trail AFTER UPDATE ON kafka_offset FOR EACH ROW EXECUTE FUNCTION leave_trail()"""


@dataclass(frozen=True, slots=True)
class Environment:
    kafka: KafkaSettings
    database: str
    logs: Path
    bug: str | None

    @property
    def topic(self) -> str:
        return self.kafka.topics[0]

    @property
    def settings(self) -> dict[str, str]:
        """The environment of a replica."""
        return settings_of(self.kafka, self.database)

    async def until_applied(self, records: int) -> None:
        connection = await asyncpg.connect(self.database)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while await connection.fetchval(APPLIED) < records:  # noqa: ASYNC110 - other processes move it
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await connection.close()


def settings_of(kafka: KafkaSettings, database: str) -> dict[str, str]:
    """The environment of replicas, tickers and relays, under the policy of the tests."""
    return SHORT_POLICY_VARIABLES | {
        "CONSUMER_DATABASE__URL": database,
        "CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS": str(kafka.session_timeout_seconds / 2),
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "CONSUMER_KAFKA__GROUP_ID": kafka.group_id,
        "CONSUMER_KAFKA__TOPICS": kafka.topics[0],
        "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": kafka.dead_letter_topic,
        "CONSUMER_KAFKA__TRANSITION_TOPIC": kafka.transition_topic,
        "CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS": str(kafka.session_timeout_seconds),
    }


@asynccontextmanager
async def prepared(found: Services, bug: str | None) -> AsyncIterator[Environment]:
    async with unmigrated(found, "demo", bug) as environment:
        await migrate(environment.database)
        for statement in (TRAIL, CREATE, *([NO_PRIMARY_KEY] if bug == "dedup" else [])):
            await execute(environment.database, statement)
        yield environment


@asynccontextmanager
async def unmigrated(found: Services, prefix: str, bug: str | None = None) -> AsyncIterator[Environment]:
    """Topics, and a database without a schema."""
    name = f"{prefix}-{secrets.token_hex(4)}"
    kafka = KafkaSettings(
        bootstrap_servers=found.kafka,
        group_id=name,
        topics=(f"{name}.events",),
        dead_letter_topic=f"{name}.dead-letter",
        transition_topic=f"{name}.transition",
        session_timeout_seconds=await found.session_seconds(SESSION_SECONDS),
    )
    with tempfile.TemporaryDirectory(prefix=f"{prefix}-") as logs:
        async with new_database(found.postgres, prefix) as database, admin(kafka) as client:
            await client.create(kafka.topics[0], PARTITIONS, 1, {})
            await client.create(kafka.transition_topic, PARTITIONS, 1, {})
            await client.create(kafka.dead_letter_topic, 1, 1, {"max.message.bytes": str(2 * 2**20)})
            try:
                yield Environment(kafka, database, Path(logs), bug)
            finally:
                topics = (*kafka.topics, kafka.dead_letter_topic, kafka.transition_topic)
                await delete(kafka.bootstrap_servers, *topics)


@asynccontextmanager
async def running(environment: Environment) -> AsyncIterator[list[Replica]]:
    """The replicas, once they are ready."""
    replicas = [
        await Replica(
            environment.settings, environment.logs / f"replica-{number}.log", *_module(environment.bug, number)
        ).start()
        for number in range(REPLICAS)
    ]
    waking = asyncio.create_task(_wake_the_frozen(replicas, environment.kafka.session_timeout_seconds))
    try:
        await until_all_ready(replicas)
        yield replicas
    finally:
        waking.cancel()
        for replica in replicas:
            replica.send(signal.SIGCONT)
            await replica.stop()


class Relays:
    """Two outbox relays; one after the other is killed without warning, and another starts in its place."""

    def __init__(self, environment: Environment) -> None:
        self.kills = 0
        self._environment = environment
        self._running: list[Replica] = []
        self._quiet = asyncio.Event()
        self._killing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for _ in range(RELAYS):
            await self._start_one()
        self._killing = asyncio.create_task(self._kill_now_and_then())

    async def _start_one(self) -> None:
        log = self._environment.logs / f"relay-{self.kills}-{len(self._running)}.log"
        self._running.append(await Replica(self._environment.settings, log, "consumer", "outbox").start())

    async def _kill_now_and_then(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), KILL_SECONDS)
                return
            await self._running.pop(0).stop(signal.SIGKILL)
            self.kills += 1
            await self._start_one()

    async def spare(self) -> None:
        """Kills no more."""
        self._quiet.set()
        if self._killing is not None:
            await self._killing

    async def until_all_is_published(self) -> None:
        connection = await asyncpg.connect(self._environment.database)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while await connection.fetchval(UNPUBLISHED):  # noqa: ASYNC110 - other processes publish
                    await asyncio.sleep(POLL_SECONDS)
        finally:
            await connection.close()

    async def stop(self) -> list[int]:
        """Their exit codes. Stopped twice is fine."""
        return [await relay.stop() for relay in self._running]


@asynccontextmanager
async def relaying(environment: Environment) -> AsyncIterator[Relays]:
    relays = Relays(environment)
    try:
        await relays.start()
        yield relays
    finally:
        await relays.spare()
        await relays.stop()


def _module(bug: str | None, number: int) -> tuple[str, str]:
    if bug is None:
        return "consumer", "run"
    return "tests.checker.planted", OF_THE_OTHERS.get(bug, bug) if number else bug


async def until_all_ready(replicas: list[Replica]) -> None:
    """Until each has joined, and one that was frozen is back and has done what it still had in hand."""
    async with asyncio.timeout(WAIT_SECONDS):
        for replica in replicas:
            while replica.is_frozen or not await replica.ready():  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(POLL_SECONDS)


async def _wake_the_frozen(replicas: list[Replica], session_seconds: float) -> None:
    """A replica that stopped itself is woken after its session has ended and another has gone on in its place."""
    while True:
        await asyncio.sleep(POLL_SECONDS)
        for replica in replicas:
            if replica.is_frozen:
                await asyncio.sleep(2 * session_seconds)
                replica.send(signal.SIGCONT)
