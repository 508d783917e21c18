"""The events that every competitor gets: seeded, in the order of time, first one for each conversation, then a talk."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Any

from consumer.lifecycle.model import Author, Event, Intent, ManualClose, Message, Status

KINDS = {"user": 52, "agent": 34, "support": 6, "system": 2, "goodbye": 2, "close": 4}
PACE = timedelta(microseconds=100)
"""Between two events: no deadline passes while they last."""


@dataclass(frozen=True, slots=True)
class Workload:
    """`opening` events make the conversations, each by a user's message; `events` more are what is measured.

    The talk is spread over `active` of the conversations (0: all of them), `hot_share` of it is the first one's.
    """

    conversations: int = 10_000
    events: int = 100_000
    hot_share: float = 0.0
    seed: int = 0
    active: int = 0

    @property
    def opening(self) -> int:
        return self.conversations

    @property
    def total(self) -> int:
        return self.opening + self.events

    def all(self, starting: datetime) -> Iterator[Event]:
        """All of them, the same for the same start."""
        random = Random(self.seed)
        for number in range(self.total):
            chosen = number if number < self.opening else self._chosen(random)
            kind = "user" if number < self.opening else random.choices(list(KINDS), list(KINDS.values()))[0]
            yield _event(kind, f"thread-{chosen:08}", f"wamid.{self.seed}.{number:09}", starting + number * PACE)

    def _chosen(self, random: Random) -> int:
        active = self.active or self.conversations
        chosen = 0 if random.random() < self.hot_share else random.randrange(active)
        return chosen * (self.conversations // active)


def _event(kind: str, conversation_id: str, event_id: str, at: datetime) -> Event:
    same: dict[str, Any] = {
        "conversation_id": conversation_id,
        "source": "whatsapp:15550001111",
        "event_id": event_id,
        "at": at,
    }
    match kind:
        case "close":
            return ManualClose(**same, status=Status.AGENT_CLOSED, actor="agent-7", reason="solved")
        case "goodbye":
            return Message(**same, author=Author.USER, intent=Intent.CLOSE)
        case _:
            return Message(**same, author=Author(kind))
