"""What a run left behind in PostgreSQL and Kafka, collected for the checker."""

import asyncio
from collections.abc import Mapping

import asyncpg
from aiokafka import ConsumerRecord
from pydantic import SecretStr

from consumer.history.replay import History
from consumer.kafka.producer import HEADER
from consumer.lifecycle.model import Conversation
from consumer.postgres.store import PostgresStore
from consumer.records import Record
from consumer.settings import DatabaseSettings, KafkaSettings
from schemas import Transition
from tests.checker.ledger import Evidence, Letter, Move, Published
from tests.stack.broker import read_all

IDS = "SELECT conversation_id FROM conversation UNION SELECT conversation_id FROM conversation_event"
MOVES = """
    SELECT topic, partition, (array_agg(before ORDER BY id))[1], (array_agg(after ORDER BY id DESC))[1]
    FROM offset_trail GROUP BY topic, partition, transaction ORDER BY min(id)"""
"""Every move that a transaction made an offset make, kept by a trigger of the demo."""
OFFSETS = "SELECT topic, partition, next_offset FROM kafka_offset WHERE consumer_group = $1"


async def collect(kafka: KafkaSettings, database: str) -> Evidence:
    """Reads everything: the log and its dead letters, and each conversation with its history."""
    found, histories = await conversations(database)
    connection = await asyncpg.connect(database)
    try:
        moves = [Move(*row) for row in await connection.fetch(MOVES)]
        offsets = {(row[0], row[1]): row[2] for row in await connection.fetch(OFFSETS, kafka.group_id)}
    finally:
        await connection.close()
    log = [_record(record) for topic in kafka.topics for record in await read_all(kafka, topic)]
    letters = [_letter(record) for record in await read_all(kafka, kafka.dead_letter_topic)]
    published = [Published(t.subject, t.data.version, t.id) for t in await transitions(kafka)]
    return Evidence(found, histories, log, letters, offsets, moves, published)


async def transitions(kafka: KafkaSettings) -> list[Transition]:
    """The transition topic, partition by partition."""
    records = await read_all(kafka, kafka.transition_topic)
    return [Transition.model_validate_json(record.value or b"") for record in records]


async def conversations(database: str) -> tuple[Mapping[str, Conversation], Mapping[str, History]]:
    """Every conversation with all its sessions, and its history."""
    settings = DatabaseSettings(url=SecretStr(database))
    found: dict[str, Conversation] = {}
    histories: dict[str, History] = {}
    connection = await asyncpg.connect(database)
    try:
        ids = iter([row[0] for row in await connection.fetch(IDS)])
    finally:
        await connection.close()

    async def read(store: PostgresStore) -> None:
        for key in ids:
            sessions, version = await store.conversation(key)
            found[key] = Conversation(key, version, tuple(sessions))
            histories[key] = await store.history(key)

    async with PostgresStore.open(settings) as store:
        await asyncio.gather(*(read(store) for _ in range(settings.writers)))
    return found, histories


def _record(record: "ConsumerRecord[bytes, bytes]") -> Record:
    return Record(record.topic, record.partition, record.offset, record.timestamp, record.key, record.value)


def _letter(record: "ConsumerRecord[bytes, bytes]") -> Letter:
    place = {name.removeprefix(HEADER): value.decode() for name, value in record.headers if name.startswith(HEADER)}
    return Letter(place["topic"], int(place["partition"]), int(place["offset"]), record.key, record.value)
