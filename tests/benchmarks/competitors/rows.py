"""The rows that competitors read and write: the same columns, in the order of the tables, from the same decisions."""

from collections.abc import Iterable
from datetime import datetime
from operator import attrgetter
from typing import Any, TypeVar
from zlib import crc32

import sqlalchemy as sa

from consumer.lifecycle.model import Author, Event, HistoryRow, Policy, Session, Status
from consumer.postgres import tables

POLICY = Policy()


def _columns(table: sa.Table, *without: str) -> tuple[str, ...]:
    return tuple(column.name for column in table.c if column.name not in without)


SESSION_COLUMNS = _columns(tables.conversation_session_archive, "conversation_id")
HISTORY_COLUMNS = (*_columns(tables.conversation_event, "recorded_at"), "recorded_at")
OUTBOX_COLUMNS = _columns(tables.transition_outbox, "id", "recorded_at")

_session_fields = attrgetter(*("number" if name == "session" else name for name in SESSION_COLUMNS))
_history_fields = attrgetter(*("kind" if name == "type" else name for name in HISTORY_COLUMNS[:-1]))
_outbox_fields = attrgetter(*OUTBOX_COLUMNS)
_STATUS = {status.value: status for status in Status}
_AUTHOR = {author.value: author for author in Author}


def session_values(session: Session) -> tuple[Any, ...]:
    values: tuple[Any, ...] = _session_fields(session)
    return values


def history_values(row: HistoryRow, now: datetime) -> tuple[Any, ...]:
    return (*_history_fields(row), now)


def outbox_values(row: HistoryRow) -> tuple[Any, ...]:
    values: tuple[Any, ...] = _outbox_fields(row)
    return values


def session_of(
    number: int, status: str, opened_at: datetime, accepted_at: Any, accepted_by: Any, *rest: Any
) -> Session:
    """The session in the values of `SESSION_COLUMNS`."""
    return Session(number, _STATUS[status], opened_at, accepted_at, _AUTHOR.get(accepted_by), *rest)


E = TypeVar("E", bound=Event)


def dealt(events: Iterable[E], hands: int) -> list[list[E]]:
    """Each conversation to one hand, so that its order holds."""
    shares: list[list[E]] = [[] for _ in range(hands)]
    for event in events:
        shares[crc32(event.conversation_id.encode()) % hands].append(event)
    return shares
