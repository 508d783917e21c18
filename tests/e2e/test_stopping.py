"""Processes that are told to stop while what they need is away, and what silent ones leave behind."""

import asyncio
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.kafka.admin import admin
from consumer.postgres.client import APPLICATION
from consumer.settings import KafkaSettings
from tests.e2e.conftest import Group, until
from tests.stack.broker import delete
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.replica import Replica
from tests.stack.silent_session import silent_within_a_copy


@pytest.fixture
def broker() -> Iterator[KafkaBroker]:
    broker = KafkaBroker()
    yield broker
    broker.stop()


@pytest.mark.parametrize("command", ["run", "ticker", "outbox"])
async def test_a_process_stops_in_good_order_while_kafka_is_away(
    command: str, broker: KafkaBroker, database: str, tmp_path: Path
) -> None:
    kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, topics=(f"test-{secrets.token_hex(6)}",))
    async with admin(kafka) as client:
        await client.create(kafka.topics[0], 3, 1, {})
        await client.create(kafka.dead_letter_topic, 1, 1, {"max.message.bytes": str(2 * 2**20)})
        await client.create(kafka.transition_topic, 1, 1, {})
    settings = {
        "CONSUMER_DATABASE__URL": database,
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "CONSUMER_KAFKA__TOPICS": kafka.topics[0],
        "CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS": "6",
    }
    process = await Replica(settings, tmp_path / "process.log", "consumer", command).start()
    try:
        await until(process.ready, "it is ready")
        broker.stop()
        await asyncio.sleep(3)  # its client notices that nobody answers
        code = await asyncio.wait_for(process.stop(), 45)
    finally:
        await process.stop(signal.SIGKILL)

    assert code == 0
    assert "Traceback" not in process.log.read_text()


@pytest.mark.parametrize("command", ["run", "ticker", "outbox"])
async def test_each_process_ends_the_sessions_of_silent_clients(group: Group, command: str) -> None:
    transitions = f"{group.topic}.transition"
    await group.create_topic(transitions)
    await group.unready_replica(
        command,
        CONSUMER_KAFKA__TRANSITION_TOPIC=transitions,
        CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS="0.5",
        CONSUMER_DATABASE__COMMAND_TIMEOUT_SECONDS="1",
    )

    async with silent_within_a_copy(group.database, APPLICATION) as connection:

        async def is_closed() -> bool:
            return bool(connection.is_closed())

        await until(is_closed, "the session is ended")

    await delete(group.kafka.bootstrap_servers, transitions)
