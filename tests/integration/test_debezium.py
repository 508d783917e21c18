"""`deploy/debezium`: Debezium publishes the outbox from the write-ahead log, and no relay runs."""

import asyncio
import json
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import ConsumerRecord
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

from consumer.kafka.admin import admin
from consumer.lifecycle.model import Author, Status
from consumer.postgres import migrations
from consumer.service.service import ConversationService
from consumer.settings import KafkaSettings
from schemas import Transition
from tests.builders import HOUR, MINUTE, SECOND, close, message
from tests.conftest import opened
from tests.demo.downstream import Downstream
from tests.e2e.conftest import until
from tests.stack.broker import delete, read_all
from tests.stack.database import execute
from tests.stack.debezium import CONNECTOR, ConnectWorker, LogicalPostgresServer
from tests.stack.postgres_server import BINARIES
from tests.stack.roles import set_up_roles, with_role
from tests.stack.services import Services

NOW = datetime.now(UTC)
ODD_ID = 'thread "4711"\n{é}'
CONFIRMED = "SELECT confirmed_flush_lsn >= '{}' FROM pg_replication_slots WHERE slot_name = 'conversation_outbox'"

TERMINATE = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active"


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A database, the connector on it, and the topic."""

    server: LogicalPostgresServer
    connector: ConnectWorker
    database: str
    kafka: KafkaSettings

    async def rows(self, sql: str) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.database)
        try:
            return [tuple(row) for row in await connection.fetch(sql)]
        finally:
            await connection.close()

    async def one(self, sql: str) -> Any:
        return (await self.rows(sql))[0][0]

    async def waiting(self) -> int:
        return int(await self.one("SELECT count(*) FROM transition_outbox"))

    async def records(self) -> list[ConsumerRecord[bytes, bytes]]:
        return await read_all(self.kafka, self.kafka.transition_topic)

    async def transitions(self) -> list[Transition]:
        return [transition(record) for record in await self.records()]

    async def until_published(self) -> list[Transition]:
        """Waits until the topic has each transition of the history; what it has then."""
        expected = await self.one(
            "SELECT count(*) FROM conversation_event WHERE from_status IS DISTINCT FROM to_status"
        )

        async def all_there() -> bool:
            return len({(event.subject, event.data.version) for event in await self.transitions()}) == int(expected)

        try:
            await until(all_there, f"{expected} transitions in the topic", 90)
        except AssertionError as error:
            raise AssertionError(self.connector.log()[-5000:]) from error
        return await self.transitions()

    async def slot_is_free(self) -> bool:
        return not await self.one("SELECT active FROM pg_replication_slots WHERE slot_name = 'conversation_outbox'")

    async def delete_published(self) -> None:
        await asyncio.to_thread(psql, self.database, CONNECTOR.with_name("delete-published.sql"))


def psql(url: str, script: Path) -> None:
    subprocess.run([str(BINARIES / "psql"), "-X", "-q", "-d", url, "-f", str(script)], check=True)


def transition(record: ConsumerRecord[bytes, bytes]) -> Transition:
    """What the CloudEvents SDK makes of a record."""
    received = KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value or b"")
    event = from_binary(received, JSONFormat(), CloudEvent)
    return Transition.model_validate({**event.get_attributes(), "data": event.get_data()})


async def converse(url: str, prefix: str, conversations: int = 10) -> None:
    """Four transitions each: opened, accepted, closed, closed with more weight."""
    async with opened(url) as store:
        service = ConversationService(store)
        for key in (f"{prefix}-{number}" for number in range(conversations)):
            await service.apply([message(at=NOW - HOUR, conversation_id=key)])
            await service.apply([message(Author.AGENT, NOW - HOUR + MINUTE, conversation_id=key)])
            closed_at = NOW - HOUR + 2 * MINUTE
            await service.apply(
                [
                    close(at=closed_at, conversation_id=key, reason="solved"),
                    close(Status.FAILED, closed_at + SECOND, conversation_id=key),
                ]
            )


@pytest.fixture(scope="module")
def pipeline(stack: Services) -> Iterator[Pipeline]:
    """Some transitions are there before the connector is."""
    kafka = KafkaSettings(bootstrap_servers=stack.kafka, transition_topic=f"test-{secrets.token_hex(6)}")
    with asyncio.Runner() as runner, ExitStack() as started:
        server = LogicalPostgresServer()
        started.callback(server.stop)
        database = runner.run(prepared(server.dsn, kafka))
        topics = (kafka.transition_topic, f"__debezium-heartbeat.{kafka.transition_topic}")
        started.callback(lambda: runner.run(delete(stack.kafka, *topics)))
        connector = ConnectWorker(
            stack.kafka,
            {
                "database.hostname": "127.0.0.1",
                "database.port": str(server.port),
                "database.dbname": "postgres",
                "topic.prefix": kafka.transition_topic,
                "transforms.outbox.route.topic.replacement": kafka.transition_topic,
            },
        )
        started.callback(connector.stop)
        yield Pipeline(server, connector, database, kafka)


async def prepared(server: str, kafka: KafkaSettings) -> str:
    """The app's URL of a database as the shipped scripts and migrations leave it, with transitions."""
    await set_up_roles(server, "test")
    await asyncio.to_thread(migrations.upgrade, with_role(server, "test_owner"))
    for _ in range(2):
        await asyncio.to_thread(psql, server, CONNECTOR.with_name("setup.sql"))
    async with admin(kafka) as client:
        await client.create(kafka.transition_topic, 3, 1, {})
    database = with_role(server, "test_app")
    await converse(database, "before")
    # Freed space is used again, so the order in the table is not that of the numbers.
    await execute(server, "UPDATE transition_outbox SET actor = actor WHERE to_status = 'pending'")
    return database


async def test_each_transition_is_published_once_as_the_contract_has_it(pipeline: Pipeline) -> None:
    await pipeline.until_published()
    async with opened(pipeline.database) as store:
        await ConversationService(store).apply(
            [close(at=NOW - HOUR, conversation_id=ODD_ID, source="odd", reason='"so" \\ ü')]
        )
    await converse(pipeline.database, "after")

    events = await pipeline.until_published()

    assert len(events) == len({event.id for event in events}) == 81
    (odd,) = (event for event in events if event.subject == ODD_ID)
    assert odd.model_dump(exclude={"id", "time", "data"}) == {
        "specversion": "1.0",
        "source": "conversation-consumer",
        "subject": ODD_ID,
        "type": "conversation.transition.v1",
    }
    assert odd.time == await pipeline.one("SELECT recorded_at FROM conversation_event WHERE source = 'odd'")
    assert odd.data.model_dump() == {
        "session": 1,
        "version": 1,
        "from_status": None,
        "to_status": "agent_closed",
        "actor": "agent-7",
        "reason": '"so" \\ ü',
        "occurred_at": NOW - HOUR,
    }
    for record in await pipeline.records():
        assert (record.key or b"").decode() == transition(record).subject
        assert "conversation_id" not in json.loads(record.value or b"")


async def test_transitions_of_a_conversation_come_by_version_also_those_from_before_the_connector(
    pipeline: Pipeline,
) -> None:
    events = await pipeline.until_published()

    for key in (f"before-{number}" for number in range(10)):
        assert [event.data.version for event in events if event.subject == key] == [1, 2, 3, 4]


async def test_a_killed_connector_loses_nothing_also_if_the_rows_are_deleted_meanwhile(pipeline: Pipeline) -> None:
    await converse(pipeline.database, "in-flight")
    pipeline.connector.freeze()
    await converse(pipeline.database, "away")
    await execute(pipeline.database, "DELETE FROM transition_outbox")
    pipeline.connector.restart(signal.SIGKILL)
    await converse(pipeline.database, "back")

    events = await pipeline.until_published()

    downstream, versions = Downstream(), dict[str, dict[int, None]]()
    downstream.read(events)
    for event in events:
        versions.setdefault(event.subject, {}).setdefault(event.data.version)
    statuses = {key: place[-1] for key, place in downstream.statuses.items()}
    assert statuses == dict(await pipeline.rows("SELECT conversation_id, status FROM conversation"))
    assert all(list(seen) == sorted(seen) for seen in versions.values())


async def test_what_the_slot_has_confirmed_is_deleted(pipeline: Pipeline) -> None:
    await converse(pipeline.database, "confirmed")
    await pipeline.until_published()

    await pipeline.delete_published()

    assert await pipeline.waiting() == 0


async def test_nothing_is_deleted_that_the_slot_has_not_confirmed(pipeline: Pipeline) -> None:
    await pipeline.until_published()
    await pipeline.delete_published()
    pipeline.connector.freeze()
    await converse(pipeline.database, "unconfirmed", 1)

    await pipeline.delete_published()
    waiting = await pipeline.waiting()
    pipeline.connector.restart(signal.SIGKILL)

    assert waiting == 4
    await pipeline.until_published()


async def test_the_slot_moves_on_although_only_other_tables_are_written(pipeline: Pipeline) -> None:
    await pipeline.until_published()
    await execute(pipeline.server.dsn, "CREATE TABLE other AS SELECT generate_series(1, 10000)")
    position = await pipeline.one("SELECT pg_current_wal_lsn()::text")

    async def confirmed() -> bool:
        return bool(await pipeline.one(CONFIRMED.format(position)))

    await until(confirmed, "the slot lets go of the log")


async def test_a_slot_that_is_lost_loses_nothing_that_waits_in_the_table(pipeline: Pipeline) -> None:
    await pipeline.until_published()
    await pipeline.delete_published()
    pipeline.connector.freeze()
    await execute(pipeline.server.dsn, TERMINATE)
    await until(pipeline.slot_is_free, "the slot is free")
    await execute(pipeline.server.dsn, "SELECT pg_drop_replication_slot('conversation_outbox')")
    await converse(pipeline.database, "slotless")

    pipeline.connector.restart(signal.SIGKILL)

    events = await pipeline.until_published()
    assert [event.data.version for event in events if event.subject == "slotless-0"] == [1, 2, 3, 4]
