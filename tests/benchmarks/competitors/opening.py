"""The conversations that competitors find in the database: opened by the workload's first events, written by COPY."""

from collections.abc import Sequence

import asyncpg

from consumer.lifecycle.model import Change, Conversation
from consumer.lifecycle.rules import fold
from tests.benchmarks.competitors.course import Course
from tests.benchmarks.competitors.rows import HISTORY_COLUMNS, POLICY, SESSION_COLUMNS, history_values, session_values


def opened(course: Course) -> dict[str, Change]:
    """What the opening makes of nothing, by conversation."""
    events = course.opening_events()
    return {e.conversation_id: fold(Conversation(e.conversation_id), [e], (), POLICY, e.at) for e in events}


async def open_conversations(course: Course) -> dict[str, Conversation]:
    """The conversations as the opening leaves them; written too, unless the database holds them already."""
    changes = opened(course)
    if course.opening:
        await load(course.database, list(changes.values()))
    return {key: change.after for key, change in changes.items()}


async def load(database: str, changes: Sequence[Change]) -> None:
    """Writes new conversations and their history; by then they are on disk, and the planner knows of them."""
    latest = [(change.after, change.after.sessions[-1]) for change in changes]
    columns = ("conversation_id", "version", *SESSION_COLUMNS, "wake_at")
    rows = [(after.id, after.version, *session_values(session), session.deadline) for after, session in latest]
    history = [history_values(row, row.occurred_at) for change in changes for row in change.rows]
    connection = await asyncpg.connect(database)
    try:
        await connection.copy_records_to_table("conversation", columns=columns, records=rows)
        await connection.copy_records_to_table("conversation_event", columns=HISTORY_COLUMNS, records=history)
        await connection.execute("VACUUM ANALYZE conversation, conversation_event")
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
