"""A history folded again, by the rules that made it: what the rows of its conversation must be."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from typing import Any, NamedTuple

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


class Step(NamedTuple):
    """A history row, and the conversation before and after the event that made it."""

    row: HistoryRow
    recorded_at: datetime
    before: Conversation
    after: Conversation


@dataclass(frozen=True, slots=True)
class Replay:
    """What a history amounts to. With a `contradiction` it says nothing: other rules or another hand made it."""

    conversation: Conversation
    steps: tuple[Step, ...]
    contradiction: str | None


def replay(conversation_id: str, history: History, policy: Policy) -> Conversation:
    """The conversation that its whole history amounts to under one policy, whatever rows it would have led to."""
    conversation = Conversation(conversation_id)
    for row, recorded_at in history:
        conversation, _ = _decide(conversation, row, recorded_at, policy)
    return conversation


def retrace(conversation_id: str, history: History, policy: Policy) -> Replay:
    """As `replay`, and each decision must lead to the very rows that are in the history."""
    steps: list[Step] = []
    conversation = Conversation(conversation_id)
    for recorded, recorded_at in history:
        before = conversation
        try:
            conversation, rows = _decide(before, recorded, recorded_at, policy)
        except ValueError as error:
            return Replay(before, tuple(steps), f"version {recorded.version} is no row that an event leaves: {error}")
        for row in rows:
            found, at = history[len(steps)] if len(steps) < len(history) else (None, recorded_at)
            if row != found:
                return Replay(before, tuple(steps), _contradiction(found, row))
            steps.append(Step(row, at, before, conversation))
    contradiction = _contradiction(history[len(steps)][0], None) if len(steps) < len(history) else None
    return Replay(conversation, tuple(steps), contradiction)


def is_whole(history: History, version: int) -> bool:
    """Whether no row is missing up to `version`: none was pruned, none was lost."""
    return len(history) >= version and [row.version for row, _ in history] == list(range(1, len(history) + 1))


def decided_by(history: History, at: datetime) -> History:
    """The part that was decided at or before a time."""
    return list(takewhile(lambda entry: entry[1] <= at, history))


def event_of(row: HistoryRow) -> Event | None:
    """The event behind a row; a deadline that took effect is a tick just after it.

    None for the rows that another event causes: they follow from that event. Raises `ValueError` on a row that no
    event leaves.
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


def _decide(
    conversation: Conversation, row: HistoryRow, recorded_at: datetime, policy: Policy
) -> tuple[Conversation, tuple[HistoryRow, ...]]:
    """The conversation after the event of a row, and all rows of that event. A repair is a version and nothing else."""
    if row.kind is Kind.REPAIR:
        return conversation._replace(version=conversation.version + 1), (row,)
    if (event := event_of(row)) is None:
        return conversation, ()
    after, rows, _ = apply(conversation, event, policy, max(recorded_at, event.at))
    return after, rows


def _contradiction(found: HistoryRow | None, folded: HistoryRow | None) -> str:
    if found is None or folded is None:
        return f"{_described(found or folded)}: the {'history' if found is None else 'fold'} has no such row"
    differing = [name for name, one, other in zip(found._fields, found, folded, strict=True) if one != other]
    return f"{_described(found)} in the history, {_described(folded)} by the rules ({', '.join(differing)})"


def _described(row: HistoryRow | None) -> str:
    assert row is not None
    return f"version {row.version} {row.outcome} {row.from_status or '-'} -> {row.to_status}"
