"""Competitor D, the ceiling: what PostgreSQL can do at all with the same rows, all of them prepared beforehand.

Per batch one transaction, on a connection like ours: the conversations by one versioned UPDATE, their history by COPY.
No offsets, no outbox, no archive. `way` is how the UPDATE gets its rows.
"""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import asyncpg
from pydantic import Field, SecretStr

from consumer.lifecycle.model import Change, Conversation, Event
from consumer.lifecycle.rules import fold
from consumer.postgres.client import connected
from consumer.settings import DatabaseSettings
from tests.benchmarks.competitors.course import Course, Run, take_part
from tests.benchmarks.competitors.opening import open_conversations
from tests.benchmarks.competitors.rows import (
    HISTORY_COLUMNS,
    POLICY,
    SESSION_COLUMNS,
    dealt,
    history_values,
    session_values,
)


class CeilingCourse(Course):
    connections: int = Field(1, ge=1)
    batch: int = Field(2000, ge=1)
    way: Literal["rows", "columns", "stage"] = "rows"


WRITE_COLUMNS = ("loaded", "conversation_id", "version", *SESSION_COLUMNS)
WRITE_LIST = ", ".join(WRITE_COLUMNS)
CREATE_STAGE = "CREATE TEMPORARY TABLE stage OF conversation_write ON COMMIT DELETE ROWS"
_TYPES = {"loaded": "bigint", "version": "bigint", "session": "int", "user_messages": "int", "agent_messages": "int"}


def _type_of(column: str) -> str:
    return _TYPES.get(column, "timestamptz" if column.endswith("_at") else "text")


def _update_from(source: str) -> str:
    return f"""
        UPDATE conversation AS c SET version = n.version, {", ".join(f"{name} = n.{name}" for name in SESSION_COLUMNS)},
            wake_at = CASE WHEN n.expires_at IS NOT NULL THEN LEAST(c.wake_at, n.idle_at, n.expires_at) END
        FROM {source} AS n ({WRITE_LIST}) WHERE c.conversation_id = n.conversation_id AND c.version = n.loaded"""


_ARRAYS = ", ".join(f"${number}::{_type_of(name)}[]" for number, name in enumerate(WRITE_COLUMNS, 1))
FROM_ROWS = _update_from("unnest($1::conversation_write[])")
FROM_COLUMNS = _update_from(f"unnest({_ARRAYS})")
FROM_STAGE = _update_from("stage")


async def _from_rows(connection: asyncpg.Connection, rows: Sequence[Any]) -> str:
    return str(await connection.execute(FROM_ROWS, rows))


async def _from_columns(connection: asyncpg.Connection, columns: Sequence[Any]) -> str:
    return str(await connection.execute(FROM_COLUMNS, *columns))


async def _from_stage(connection: asyncpg.Connection, rows: Sequence[Any]) -> str:
    await connection.copy_records_to_table("stage", columns=WRITE_COLUMNS, records=rows)
    return str(await connection.execute(FROM_STAGE))


Update = Callable[[asyncpg.Connection, Sequence[Any]], Awaitable[str]]
UPDATES: dict[str, Update] = {"rows": _from_rows, "columns": _from_columns, "stage": _from_stage}


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes. `writes` are rows or, for the way that wants them so, columns."""

    conversations: int
    writes: Sequence[Any]
    history: list[tuple[Any, ...]]


def batches(course: CeilingCourse, folded: dict[str, Conversation], events: Sequence[Event]) -> list[Batch]:
    """Folds `events` in memory, a batch at a time, and moves `folded` on."""
    starts = range(0, len(events), course.batch)
    return [_batch(course, list(_fold(folded, events[start : start + course.batch]))) for start in starts]


def _fold(folded: dict[str, Conversation], events: Sequence[Event]) -> Iterator[Change]:
    by_id: dict[str, list[Event]] = {}
    for event in events:
        by_id.setdefault(event.conversation_id, []).append(event)
    for key in sorted(by_id):
        change = fold(folded[key], by_id[key], (), POLICY, datetime.now(UTC))
        folded[key] = change.after.without_archive()
        yield change


def _batch(course: CeilingCourse, changes: Sequence[Change]) -> Batch:
    now = datetime.now(UTC)
    rows = [(c.before.version, c.after.id, c.after.version, *session_values(c.after.sessions[-1])) for c in changes]
    history = [history_values(row, now) for change in changes for row in change.rows]
    return Batch(len(rows), list(zip(*rows, strict=True)) if course.way == "columns" else rows, history)


async def write(connection: asyncpg.Connection, update: Update, batch: Batch) -> None:
    async with connection.transaction():
        if await update(connection, batch.writes) != f"UPDATE {batch.conversations}":
            raise RuntimeError("a version is not as it was left: somebody else writes to this database")
        await connection.copy_records_to_table("conversation_event", columns=HISTORY_COLUMNS, records=batch.history)


async def write_all(
    connections: Sequence[asyncpg.Connection], update: Update, shares: Sequence[Sequence[Batch]]
) -> None:
    async def write_one_by_one(connection: asyncpg.Connection, share: Sequence[Batch]) -> None:
        for batch in share:
            await write(connection, update, batch)

    async with asyncio.TaskGroup() as tasks:
        for connection, share in zip(connections, shares, strict=True):
            tasks.create_task(write_one_by_one(connection, share))


@asynccontextmanager
async def staged(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await connected(DatabaseSettings(url=SecretStr(database)))
    try:
        await connection.execute(CREATE_STAGE)
        yield connection
    finally:
        await connection.close()


async def race(course: CeilingCourse) -> Run:
    folded = await open_conversations(course)
    warm_up, talk = course.talk()
    warming = [batches(course, folded, share) for share in dealt(warm_up, course.connections)]
    measured = [batches(course, folded, share) for share in dealt(talk, course.connections)]
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(staged(course.database)) for _ in measured]
        await write_all(connections, UPDATES[course.way], warming)
        gc.collect()
        gc.freeze()
        gc.disable()
        began = time.perf_counter()
        await write_all(connections, UPDATES[course.way], measured)
        return Run(events=len(talk), seconds=time.perf_counter() - began)


if __name__ == "__main__":
    take_part(CeilingCourse, race)
