"""Competitor A, what one would build first: aiokafka, the SQLAlchemy ORM with its version column, a commit per event.

It decides as we do, with our `apply`; only how the data travel is its own. It keeps no offsets in the database: the
client commits them to Kafka now and then, as it does by default, which is the cheapest.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped
from sqlalchemy.orm.exc import StaleDataError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from consumer.decoding import to_event
from consumer.lifecycle.model import Conversation, Decision, Event, HistoryRow, Session, Tick
from consumer.lifecycle.rules import apply, reaches_back
from consumer.postgres import tables
from schemas import Invalid, decode
from tests.benchmarks.competitors.course import LogCourse, Run, Stopwatch, take_part
from tests.benchmarks.competitors.opening import open_conversations
from tests.benchmarks.competitors.rows import (
    HISTORY_COLUMNS,
    OUTBOX_COLUMNS,
    POLICY,
    SESSION_COLUMNS,
    history_values,
    outbox_values,
    session_of,
    session_values,
)

log = logging.getLogger(__name__)
Sessions = async_sessionmaker[AsyncSession]


class Base(DeclarativeBase):
    metadata = tables.metadata


class ConversationEntity(Base):
    __table__ = tables.conversation
    # By hand: an event may raise the version by more than one.
    __mapper_args__ = {"version_id_col": tables.conversation.c.version, "version_id_generator": False}  # noqa: RUF012

    if TYPE_CHECKING:
        version: Mapped[int]
        wake_at: Mapped[Any]


class ArchivedSessionEntity(Base):
    __table__ = tables.conversation_session_archive

    if TYPE_CHECKING:
        session: Mapped[int]


class EventEntity(Base):
    __table__ = tables.conversation_event


class TransitionEntity(Base):
    __table__ = tables.transition_outbox


class Stored:
    """The entities of one conversation, in the session that loaded them."""

    def __init__(self, current: ConversationEntity | None, archived: Sequence[ArchivedSessionEntity] = ()) -> None:
        self.current = current
        self.archived = {entity.session: entity for entity in archived}

    def conversation(self, conversation_id: str) -> Conversation:
        if self.current is None:
            return Conversation(conversation_id)
        archived = (session_of(*_values(self.archived[number])) for number in sorted(self.archived))
        return Conversation(conversation_id, self.current.version, (*archived, session_of(*_values(self.current))))


def _values(entity: Base) -> list[Any]:
    return [getattr(entity, name) for name in SESSION_COLUMNS]


async def handle(sessions: Sessions, event: Event) -> None:
    """Applies an event and commits; a lost race is decided again on fresh state."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type((StaleDataError, IntegrityError)),
        wait=wait_random_exponential(multiplier=0.01, max=1),
        stop=stop_after_attempt(20),
        reraise=True,
    ):
        with attempt:
            async with sessions.begin() as session:
                await _handle(session, event)


async def _handle(session: AsyncSession, event: Event) -> None:
    identity = (event.conversation_id, event.source, event.event_id)
    if not isinstance(event, Tick) and await session.get(EventEntity, identity) is not None:
        return
    now = datetime.now(UTC)
    stored = await _load(session, event, now)
    before = stored.conversation(event.conversation_id)
    decision = apply(before, event, POLICY, now)
    if decision.rows:
        _write(session, stored, before, decision, now)


async def _load(session: AsyncSession, event: Event, now: datetime) -> Stored:
    stored = Stored(await session.get(ConversationEntity, event.conversation_id))
    if stored.current is None or not reaches_back(stored.conversation(event.conversation_id), [event], now):
        return stored
    of_conversation = tables.conversation_session_archive.c.conversation_id == event.conversation_id
    archived = await session.scalars(sa.select(ArchivedSessionEntity).where(of_conversation))
    return Stored(stored.current, archived.all())


def _write(session: AsyncSession, stored: Stored, before: Conversation, decision: Decision, now: datetime) -> None:
    after = decision.conversation
    if (current := stored.current) is None:
        current = ConversationEntity(conversation_id=after.id)
        session.add(current)
    _arm(current, before.current, after.sessions[-1])
    _assign(current, after.sessions[-1])
    current.version = after.version
    for superseded in after.sessions[:-1]:
        if (archived := stored.archived.get(superseded.number)) is None:
            archived = ArchivedSessionEntity(conversation_id=after.id)
            session.add(archived)
        _assign(archived, superseded)
    session.add_all(_event(row, now) for row in decision.rows)
    session.add_all(_transition(row) for row in decision.rows if row.is_transition)


def _assign(entity: Base, session: Session) -> None:
    for name, value in zip(SESSION_COLUMNS, session_values(session), strict=True):
        setattr(entity, name, value)


def _arm(entity: ConversationEntity, before: Session | None, after: Session) -> None:
    """The alarm, in SQL where it is lowered: a ticker may have moved it, which does not touch the version."""
    earlier = before.deadline if before else None
    if after.deadline is None or before is None:
        entity.wake_at = after.deadline
    elif earlier is None or after.deadline < earlier:
        entity.wake_at = sa.func.least(tables.conversation.c.wake_at, after.deadline)


def _event(row: HistoryRow, now: datetime) -> EventEntity:
    return EventEntity(**dict(zip(HISTORY_COLUMNS, history_values(row, now), strict=True)))


def _transition(row: HistoryRow) -> TransitionEntity:
    return TransitionEntity(**dict(zip(OUTBOX_COLUMNS, outbox_values(row), strict=True)))


@asynccontextmanager
async def opened_sessions(database: str) -> AsyncIterator[Sessions]:
    engine = create_async_engine(urlsplit(database)._replace(scheme="postgresql+asyncpg").geturl())
    try:
        yield async_sessionmaker(engine, expire_on_commit=False)
    finally:
        await engine.dispose()


async def prepare(course: LogCourse) -> None:
    """Puts the conversations into the database, and the group where it is to start."""
    await open_conversations(course)
    if course.start:
        await commit(course, {TopicPartition(course.topic, number): at for number, at in course.start.items()})


async def commit(course: LogCourse, offsets: dict[TopicPartition, int]) -> None:
    client = AIOKafkaConsumer(bootstrap_servers=course.kafka, group_id=course.group, enable_auto_commit=False)
    await client.start()
    try:
        client.assign(list(offsets))
        await client.commit(offsets)
    finally:
        await client.stop()


async def consume(course: LogCourse, sessions: Sessions) -> Run:
    stopwatch = Stopwatch(course)
    client = AIOKafkaConsumer(
        course.topic, bootstrap_servers=course.kafka, group_id=course.group, auto_offset_reset="earliest"
    )
    await client.start()
    try:
        async for record in client:
            if (event := _decoded(record)) is not None:
                await handle(sessions, event)
            if stopwatch.stops():
                break
    finally:
        await client.stop()
    return stopwatch.run()


def _decoded(record: ConsumerRecord) -> Event | None:
    try:
        return to_event(decode(record.key, record.value, now=datetime.now(UTC)))
    except Invalid as invalid:
        log.warning("record %s of partition %s left out: %s", record.offset, record.partition, invalid)
        return None


async def race(course: LogCourse) -> Run:
    await prepare(course)
    async with opened_sessions(course.database) as sessions:
        return await consume(course, sessions)


if __name__ == "__main__":
    take_part(LogCourse, race)
