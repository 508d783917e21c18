"""What one writes first: read the row, change it, write it back. It runs beside ours, on the same traffic.

No straw man: it knows the statuses, the deadlines and who closed; it takes each partition in order. What it lacks is
what the consumer is for: a version, deduplication, and rules for events that cross each other.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumer.decoding import to_event
from consumer.lifecycle.model import CLOSED_BY, Author, Event, ManualClose, Message, Policy, Status, Tick
from consumer.settings import KafkaSettings
from schemas import Invalid, decode

CREATE = """
    CREATE TABLE naive_conversation (conversation_id text PRIMARY KEY, status text NOT NULL,
        user_messages int NOT NULL, agent_messages int NOT NULL, last_activity_at timestamptz NOT NULL,
        closed_by text, updates int NOT NULL)"""
READ = """
    SELECT status, user_messages, agent_messages, last_activity_at, closed_by, updates
    FROM naive_conversation WHERE conversation_id = $1"""
WRITE = """
    INSERT INTO naive_conversation VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (conversation_id) DO UPDATE SET
        status = $2, user_messages = $3, agent_messages = $4, last_activity_at = $5, closed_by = $6, updates = $7"""


@dataclass(frozen=True, slots=True)
class NaiveRow:
    status: Status
    user_messages: int
    agent_messages: int
    last_activity_at: datetime
    closed_by: str | None
    updates: int


class NaiveWriter:
    """Applies events, and remembers what it was told went well."""

    def __init__(self, pool: asyncpg.Pool, policy: Policy) -> None:
        self.pool = pool
        self._policy = policy
        self.acknowledged: Counter[str] = Counter()
        self.identities: Counter[tuple[str, str, str]] = Counter()
        self.expiries: Counter[str] = Counter()
        self.records = 0

    async def apply(self, event: Event) -> None:
        key = event.conversation_id
        async with self.pool.acquire() as connection:
            stored = await connection.fetchrow(READ, key)
            row = NaiveRow(Status(stored[0]), *stored[1:]) if stored else None
            changed = _decide(row, event, self._policy)
            if changed is None:
                return
            changed = replace(changed, updates=row.updates + 1 if row else 1)
            await connection.execute(
                WRITE,
                *(key, changed.status, changed.user_messages, changed.agent_messages),
                *(changed.last_activity_at, changed.closed_by, changed.updates),
            )
        self.acknowledged[key] += 1
        if isinstance(event, Tick):
            self.expiries[key] += 1
        else:
            self.identities[key, event.source, event.event_id] += 1

    async def consume(self, kafka: KafkaSettings, partition: int) -> None:
        """Applies a partition of the log, record by record, until cancelled."""
        client = AIOKafkaConsumer(bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest")
        await client.start()
        try:
            client.assign([TopicPartition(kafka.topics[0], partition)])
            async for record in client:
                try:
                    event = to_event(decode(record.key, record.value, now=datetime.now(UTC)))
                except Invalid:
                    event = None
                if event is not None:
                    await self.apply(event)
                self.records += 1
        finally:
            await client.stop()

    async def rows(self) -> dict[str, NaiveRow]:
        stored = await self.pool.fetch(
            f"{READ.split('WHERE', maxsplit=1)[0]}".replace("SELECT", "SELECT conversation_id,")
        )
        return {row[0]: NaiveRow(Status(row[1]), *row[2:]) for row in stored}

    async def lost_updates(self) -> int:
        """Writes that were acknowledged, and then overwritten by somebody who had read before them.

        While writes are in flight it may be more: those are in the table before they are acknowledged.
        """
        acknowledged = self.acknowledged.total()
        written = await self.pool.fetchval("SELECT sum(updates) FROM naive_conversation") or 0
        return max(0, acknowledged - int(written))

    @property
    def double_effects(self) -> int:
        """Deliveries that had an effect again."""
        return self.identities.total() - len(self.identities)


def _decide(row: NaiveRow | None, event: Event, policy: Policy) -> NaiveRow | None:
    """The row after the event; None leaves it as it is."""
    match event:
        case Tick():
            return _expired(row, event, policy) if row else None
        case ManualClose():
            return (
                _closed(row, event.status)
                if row
                else NaiveRow(event.status, 0, 0, event.at, CLOSED_BY[event.status], 0)
            )
        case Message():
            row = row or NaiveRow(Status.PENDING, 0, 0, event.at, None, 0)
            return _closed(_received(row, event), Status.USER_CLOSED) if event.is_goodbye else _received(row, event)


def _received(row: NaiveRow, message: Message) -> NaiveRow:
    by_user = message.author is Author.USER
    return replace(
        row,
        status=Status.PENDING if by_user and row.status in (Status.PENDING, *CLOSED_BY) else Status.PROGRESS,
        user_messages=row.user_messages + by_user,
        agent_messages=row.agent_messages + (message.author in (Author.AGENT, Author.SUPPORT)),
        last_activity_at=max(row.last_activity_at, message.at),
        closed_by=None,
    )


def _closed(row: NaiveRow, status: Status) -> NaiveRow | None:
    """The first closing wins, as in most code that checks whether it is already closed."""
    return None if row.status in CLOSED_BY else replace(row, status=status, closed_by=CLOSED_BY[status])


def _expired(row: NaiveRow, tick: Tick, policy: Policy) -> NaiveRow | None:
    ttl = policy.pending_ttl if row.status is Status.PENDING else policy.progress_ttl
    if row.status in CLOSED_BY or tick.at - row.last_activity_at < ttl:
        return None
    return replace(row, status=Status.EXPIRED, closed_by="timer")


async def read_along(writer: NaiveWriter, kafka: KafkaSettings, partitions: int) -> None:
    """Consumes all partitions, one task each, until cancelled."""
    async with asyncio.TaskGroup() as group:
        for partition in range(partitions):
            group.create_task(writer.consume(kafka, partition))
