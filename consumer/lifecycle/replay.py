"""The history, folded again: what the rows of a conversation must be if its history tells the truth."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    Author,
    Conversation,
    Event,
    HistoryRow,
    Intent,
    Kind,
    ManualClose,
    Message,
    Policy,
    Status,
    Tick,
)
from consumer.lifecycle.rules import apply

History = Sequence[tuple[HistoryRow, datetime]]
"""(row, recorded at), by version."""


def replay(conversation_id: str, history: History, policy: Policy) -> Conversation:
    """The conversation that its history amounts to under one policy."""
    conversation = Conversation(conversation_id)
    for row, recorded_at in history:
        if (event := event_of(row)) is not None:
            conversation = apply(conversation, event, policy, max(recorded_at, event.at)).conversation
    return conversation


def event_of(row: HistoryRow) -> Event | None:
    """The event behind a row; a deadline that took effect is a tick just after it.

    None for the rows that another event causes: they follow from that event.
    """
    envelope: dict[str, Any] = {"conversation_id": row.conversation_id, "source": row.source, "event_id": row.event_id}
    match row.kind, row.source == CONSUMER_SOURCE:
        case Kind.TICK, _:
            return Tick(**envelope, at=row.occurred_at + timedelta(microseconds=1))
        case _, True:
            return None
        case Kind.INBOUND_MESSAGE, _:
            intent = Intent.CLOSE if row.requested == "close" else None
            return Message(**envelope, at=row.occurred_at, author=Author(row.actor), intent=intent)
        case _:
            status = Status(row.requested or "")
            return ManualClose(**envelope, at=row.occurred_at, status=status, actor=row.actor, reason=row.reason)
