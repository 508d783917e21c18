"""Events with defaults for whatever a test does not mention."""

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from consumer.lifecycle.model import Author, Intent, ManualClose, Message, Status, Tick

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE, HOUR, SECOND = timedelta(minutes=1), timedelta(hours=1), timedelta(seconds=1)
_ids = count(1)


def message(author: Author = Author.USER, at: datetime = T0, **changes: Any) -> Message:
    defaults = {"conversation_id": "c-1", "source": "whatsapp:1", "event_id": f"m-{next(_ids)}"}
    return Message(**{**defaults, "author": author, "at": at, **changes})


def goodbye(at: datetime = T0, **changes: Any) -> Message:
    return message(Author.USER, at, intent=Intent.CLOSE, **changes)


def close(status: Status = Status.AGENT_CLOSED, at: datetime = T0, **changes: Any) -> ManualClose:
    defaults = {"conversation_id": "c-1", "source": "back-office", "event_id": f"x-{next(_ids)}", "actor": "agent-7"}
    return ManualClose(**{**defaults, "status": status, "at": at, **changes})


def tick(at: datetime = T0, **changes: Any) -> Tick:
    return Tick(**{"conversation_id": "c-1", "source": "ticker", "event_id": f"t-{next(_ids)}", "at": at, **changes})
