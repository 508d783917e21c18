"""Competitor C: per-event transactions with the bare driver, without Kafka and without decoding.

`tasks` of them run at once, each on a connection of its own and with its own conversations, so that order holds.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from itertools import count
from random import uniform

import asyncpg
from pydantic import Field

from consumer.lifecycle.model import Conversation, Decision, Event, Tick
from consumer.lifecycle.rules import apply, reaches_back
from tests.benchmarks.competitors.course import Course, Run, take_part
from tests.benchmarks.competitors.opening import open_conversations
from tests.benchmarks.competitors.rows import (
    HISTORY_COLUMNS,
    OUTBOX_COLUMNS,
    POLICY,
    SESSION_COLUMNS,
    dealt,
    history_values,
    outbox_values,
    session_of,
    session_values,
)


def _parameters(last: int) -> str:
    return ", ".join(f"${number}" for number in range(1, last + 1))


SESSION_LIST = ", ".join(SESSION_COLUMNS)
_PARAMETER = {name: f"${number}" for number, name in enumerate(SESSION_COLUMNS, 4)}
_DEADLINES = f"{_PARAMETER['idle_at']}::timestamptz, {_PARAMETER['expires_at']}::timestamptz"
LOAD = f"""
    SELECT clock_timestamp(), EXISTS (
        SELECT FROM conversation_event WHERE conversation_id = $1 AND source = $2 AND event_id = $3
    ), c.version, {", ".join(f"c.{name}" for name in SESSION_COLUMNS)}
    FROM (VALUES (1)) AS once (row) LEFT JOIN conversation AS c ON c.conversation_id = $1"""
LOAD_ARCHIVE = f"SELECT {SESSION_LIST} FROM conversation_session_archive WHERE conversation_id = $1 ORDER BY session"
UPDATE = f"""
    UPDATE conversation SET version = $3, {", ".join(f"{name} = {n}" for name, n in _PARAMETER.items())},
        wake_at = CASE WHEN {_PARAMETER["expires_at"]}::timestamptz IS NOT NULL THEN LEAST(wake_at, {_DEADLINES}) END
    WHERE conversation_id = $1 AND version = $2"""
# The same parameters, so $2 is the version before: 0.
INSERT = f"""
    INSERT INTO conversation (conversation_id, version, {SESSION_LIST}, wake_at)
    VALUES ($1, $2::bigint + $3, {", ".join(_PARAMETER.values())}, LEAST({_DEADLINES})) ON CONFLICT DO NOTHING"""
ARCHIVE = f"""
    INSERT INTO conversation_session_archive (conversation_id, {SESSION_LIST})
    VALUES ({_parameters(1 + len(SESSION_COLUMNS))}) ON CONFLICT (conversation_id, session) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in SESSION_COLUMNS)}"""
HISTORY = f"INSERT INTO conversation_event ({', '.join(HISTORY_COLUMNS)}) VALUES ({_parameters(len(HISTORY_COLUMNS))})"
OUTBOX = f"INSERT INTO transition_outbox ({', '.join(OUTBOX_COLUMNS)}) VALUES ({_parameters(len(OUTBOX_COLUMNS))})"


class TaskCourse(Course):
    tasks: int = Field(8, ge=1)


class LostRaceError(Exception):
    """Somebody else has written the conversation since it was read."""


async def handle(connection: asyncpg.Connection, event: Event) -> None:
    """Applies an event and commits; a lost race is decided again on fresh state."""
    for attempt in count():
        try:
            async with connection.transaction():
                await _handle(connection, event)
        except LostRaceError:
            await asyncio.sleep(uniform(0, min(1, 0.01 * 2**attempt)))
        else:
            return


async def _handle(connection: asyncpg.Connection, event: Event) -> None:
    key = event.conversation_id
    now, is_known, version, *values = await connection.fetchrow(LOAD, key, event.source, event.event_id)
    if is_known and not isinstance(event, Tick):
        return
    before = Conversation(key) if version is None else Conversation(key, version, (session_of(*values),))
    if version is not None and reaches_back(before, [event], now):
        archived = [session_of(*row) for row in await connection.fetch(LOAD_ARCHIVE, key)]
        before = Conversation(key, version, (*archived, *before.sessions))
    decision = apply(before, event, POLICY, now)
    if decision.rows:
        await _write(connection, before, decision, now)


async def _write(connection: asyncpg.Connection, before: Conversation, decision: Decision, now: datetime) -> None:
    after = decision.conversation
    values = (after.id, before.version, after.version, *session_values(after.sessions[-1]))
    if (await connection.execute(UPDATE if before.version else INSERT, *values)).endswith(" 0"):
        raise LostRaceError
    for session in after.sessions[:-1]:
        if session not in before.sessions[:-1]:
            await connection.execute(ARCHIVE, after.id, *session_values(session))
    for row in decision.rows:
        await connection.execute(HISTORY, *history_values(row, now))
        if row.is_transition:
            await connection.execute(OUTBOX, *outbox_values(row))


async def _handle_all(connections: Sequence[asyncpg.Connection], events: Sequence[Event]) -> None:
    async def handle_one_by_one(connection: asyncpg.Connection, share: Sequence[Event]) -> None:
        for event in share:
            await handle(connection, event)

    async with asyncio.TaskGroup() as tasks:
        for connection, share in zip(connections, dealt(events, len(connections)), strict=True):
            tasks.create_task(handle_one_by_one(connection, share))


async def race(course: TaskCourse) -> Run:
    await open_conversations(course)
    warm_up, talk = course.talk()
    async with (
        asyncpg.create_pool(course.database, min_size=course.tasks, max_size=course.tasks) as pool,
        AsyncExitStack() as stack,
    ):
        connections = [await stack.enter_async_context(pool.acquire()) for _ in range(course.tasks)]
        await _handle_all(connections, warm_up)
        began = time.perf_counter()
        await _handle_all(connections, talk)
        return Run(events=len(talk), seconds=time.perf_counter() - began)


if __name__ == "__main__":
    take_part(TaskCourse, race)
