"""Seeded traffic: conversations with duplicates, poison, late and out-of-order events, on the real clock."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from consumer.decoding import encoded
from consumer.lifecycle.model import Author, Event, Intent, ManualClose, Message, Status, Tick
from consumer.settings import PolicySettings
from tests.checker.ledger import Ledger

CLOSINGS = (Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED)
KINDS = {"user": 45, "agent": 22, "support": 6, "system": 3, "goodbye": 4, "close": 12}
POISON = (
    (b"c-0001", b"not json"),
    (b"c-0001", b"\xff\xfe\x00"),
    (b"c-0001", b'{"type": "conversation.escalation.v1"}'),
    (b"c-0001", b'{"type": "conversation.tick.v1", "subject": 7}'),
    (b"c-0001", None),
)

SHORT_POLICY = PolicySettings.model_validate(
    {
        "pending_ttl": "4s",
        "progress_ttl": "3s",
        "idle_after": "1s",
        "reclassification_window": "6s",
        "follow_up_grace": "0.5s",
        "goodbye_grace": "0.2s",
    }
)
"""Deadlines of seconds, so that they pass while a test looks on."""
SHORT_POLICY_VARIABLES = {
    f"CONSUMER_POLICY__{name}".upper(): str(value) for name, value in SHORT_POLICY.model_dump(mode="json").items()
}
"""The same for a process, in ISO 8601."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the traffic, and how many conversations it is spread over."""

    cold: int = 2000
    hot: int = 6
    hot_share: float = 0.10
    duplicate: float = 0.05
    poison: float = 0.005
    tick: float = 0.08
    late: float = 0.15
    latest: timedelta = timedelta(seconds=6)
    ahead: float = 0.0
    farthest: timedelta = timedelta(seconds=12)


class Traffic:
    """What upstream services publish. The same seed gives the same choices; times are the clock's."""

    def __init__(
        self,
        seed: int,
        ledger: Ledger,
        mix: Mix | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._random = Random(seed)
        self._clock = clock
        self._ledger = ledger
        self._mix = mix or Mix()
        self._count = 0
        self._recent: list[Event] = []
        self.hot = [f"hot-{number}" for number in range(self._mix.hot)]
        self.cold = [f"c-{number:04}" for number in range(self._mix.cold)]

    def records(self, count: int) -> list[tuple[bytes | None, bytes | None]]:
        """The next records for the log, noted in the ledger: publish them all."""
        records = [self._record() for _ in range(count)]
        self._ledger.records += count
        return records

    def ticks(self) -> list[tuple[bytes | None, bytes | None]]:
        """A tick for every conversation."""
        self._ledger.records += len(self.hot) + len(self.cold)
        return [encoded(self._tick(key)) for key in (*self.hot, *self.cold)]

    def event(self, conversation_id: str, source: str) -> Event:
        """An event of any kind for a conversation, not yet noted."""
        if self._random.random() < self._mix.tick:
            return self._tick(conversation_id)
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        self._count += 1
        same: dict[str, Any] = {
            "conversation_id": conversation_id,
            "source": source,
            "event_id": f"{source}-{self._count}",
        }
        match kind:
            case "close":
                status = self._random.choice(CLOSINGS)
                return ManualClose(**same, at=self._time(), status=status, actor="agent-7", reason="demo")
            case "goodbye":
                return Message(**same, at=self._time(), author=Author.USER, intent=Intent.CLOSE)
            case _:
                return Message(**same, at=self._time(), author=Author(kind))

    def recent(self) -> Event | None:
        """One of the last events for the log, if there are any."""
        return self._random.choice(self._recent) if self._recent else None

    def _record(self) -> tuple[bytes | None, bytes | None]:
        chance = self._random.random()
        if chance < self._mix.poison:
            poison = self._random.choice(POISON)
            self._ledger.poison[poison] += 1
            return poison
        if chance < self._mix.poison + self._mix.duplicate and self._recent:
            return encoded(self._again(self._random.choice(self._recent)))
        event = self.event(self._conversation(), "whatsapp:1")
        self._ledger.note(event)
        self._recent = [*self._recent[-500:], event]
        return encoded(event)

    def _again(self, event: Event) -> Event:
        """A provider's double delivery: the same id, at times with another time."""
        return event._replace(at=self._time()) if self._random.random() < 0.5 else event

    def _conversation(self) -> str:
        return self._random.choice(self.hot if self._random.random() < self._mix.hot_share else self.cold)

    def _tick(self, conversation_id: str) -> Tick:
        self._count += 1
        event_id = f"tick-{self._count}"
        return Tick(conversation_id=conversation_id, source="ticker", event_id=event_id, at=self._clock())

    def _time(self) -> datetime:
        chance = self._random.random()
        if chance < self._mix.late:
            return self._clock() - self._random.random() * self._mix.latest
        if chance < self._mix.late + self._mix.ahead:
            return self._clock() + self._random.random() * self._mix.farthest
        return self._clock()
