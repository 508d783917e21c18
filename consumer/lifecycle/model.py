"""The vocabulary of the lifecycle: events, sessions, conversations, history rows. Standard library only.

Times are aware UTC datetimes: `at` is event time, `now` is the database's clock.

What is made anew for every event is a named tuple: immutable like the frozen dataclasses beside it, and several times
faster to make and to change (`make profile`).
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

CONSUMER_SOURCE = "consumer"
"""`source` of the rows an event causes besides its own; reserved, no event may carry it."""


class Vocabulary(StrEnum):
    """A closed vocabulary. Its members hash as the strings that they equal, as `Enum` alone would not, and faster."""

    __hash__ = str.__hash__


class Status(Vocabulary):
    PENDING = "pending"
    PROGRESS = "progress"
    IDLE_TIMEOUT = "idle_timeout"
    EXPIRED = "expired"
    AGENT_CLOSED = "agent_closed"
    SUPPORT_CLOSED = "support_closed"
    USER_CLOSED = "user_closed"
    FAILED = "failed"

    @property
    def is_open(self) -> bool:
        return self in OPEN


class Author(Vocabulary):
    USER = "user"
    AGENT = "agent"
    SUPPORT = "support"
    SYSTEM = "system"


class Intent(Vocabulary):
    CLOSE = "close"


class Kind(Vocabulary):
    """The short event types: values of `conversation_event.type`. `EVENT_KINDS` are those of events and metrics."""

    INBOUND_MESSAGE = "inbound-message"
    MANUAL_CLOSE = "manual-close"
    TICK = "tick"
    REPAIR = "repair"
    """No event: an operator had the row written anew as its history folds. It changes no session and no status."""


class Outcome(Vocabulary):
    """What became of an event."""

    APPLIED = "applied"
    RECLASSIFIED = "reclassified"
    REINSTATED = "reinstated"
    LATE = "late"
    OUTRANKED = "outranked"
    DUPLICATE = "duplicate"
    EARLY = "early"
    NOOP = "noop"
    UNKNOWN = "unknown"
    DEAD_LETTER = "dead_letter"

    @property
    def has_effect(self) -> bool:
        return self in EFFECTIVE


# Every event is compared with these; until Python 3.12 a member of an enum takes five times as long to look up.
USER, AGENT, SUPPORT, SYSTEM = Author
PENDING, PROGRESS, IDLE_TIMEOUT = Status.PENDING, Status.PROGRESS, Status.IDLE_TIMEOUT
APPLIED = Outcome.APPLIED

EVENT_KINDS = (Kind.INBOUND_MESSAGE, Kind.MANUAL_CLOSE, Kind.TICK)
OPEN = frozenset({PENDING, PROGRESS, IDLE_TIMEOUT})
EFFECTIVE = frozenset({Outcome.APPLIED, Outcome.RECLASSIFIED, Outcome.REINSTATED, Outcome.LATE, Outcome.OUTRANKED})

RANK = {
    Status.FAILED: 1,
    Status.USER_CLOSED: 2,
    Status.SUPPORT_CLOSED: 3,
    Status.AGENT_CLOSED: 4,
    Status.EXPIRED: 5,
}
"""Closing priority: a lower number wins."""

CLOSED_BY = {
    Status.FAILED: "system",
    Status.USER_CLOSED: "user",
    Status.SUPPORT_CLOSED: "support",
    Status.AGENT_CLOSED: "agent",
    Status.EXPIRED: "timer",
}


@dataclass(frozen=True, slots=True)
class Policy:
    """How long a conversation may wait, and how far apart events may lie and still belong together."""

    pending_ttl: timedelta = timedelta(hours=48)
    progress_ttl: timedelta = timedelta(hours=24)
    idle_after: timedelta = timedelta(minutes=15)
    reclassification_window: timedelta = timedelta(hours=24)
    follow_up_grace: timedelta = timedelta(minutes=10)
    goodbye_grace: timedelta = timedelta(seconds=5)
    clock_tolerance: timedelta = timedelta(seconds=5)


class Message(NamedTuple):
    """Somebody wrote. A `user` message with `intent` close is a goodbye; the intent of others is ignored."""

    conversation_id: str
    source: str
    event_id: str
    at: datetime
    author: Author
    intent: Intent | None = None
    kind: Kind = Kind.INBOUND_MESSAGE

    @property
    def is_goodbye(self) -> bool:
        return self.intent is not None and self.author is USER

    @property
    def requested(self) -> str:
        return Intent.CLOSE if self.is_goodbye else self.author

    @property
    def actor(self) -> str:
        return self.author

    @property
    def reason(self) -> None:
        return None


class ManualClose(NamedTuple):
    """Somebody closed the conversation on purpose. `status` is any of `RANK` but `expired`."""

    conversation_id: str
    source: str
    event_id: str
    at: datetime
    status: Status
    actor: str
    reason: str | None = None
    kind: Kind = Kind.MANUAL_CLOSE

    @property
    def requested(self) -> str:
        return self.status


class Tick(NamedTuple):
    """Deadlines before `at` may take effect."""

    conversation_id: str
    source: str
    event_id: str
    at: datetime
    kind: Kind = Kind.TICK


Event = Message | ManualClose | Tick
Closing = Message | ManualClose
Identity = tuple[str, str]
"""(`source`, `event_id`): with the conversation id, what deduplication goes by."""


class Session(NamedTuple):
    """One stretch of talk, from its first message to its closing. The fields are the columns, in their order."""

    number: int
    status: Status
    opened_at: datetime
    accepted_at: datetime | None
    accepted_by: Author | None
    last_activity_at: datetime
    last_user_message_at: datetime | None = None
    last_agent_message_at: datetime | None = None
    user_messages: int = 0
    agent_messages: int = 0
    idle_at: datetime | None = None
    expires_at: datetime | None = None
    closed_at: datetime | None = None
    closed_by: str | None = None
    close_reason: str | None = None
    reclassified_at: datetime | None = None

    @property
    def deadline(self) -> datetime | None:
        """The next moment at which the timer changes this session; null when closed."""
        idle_at, expires_at = self.idle_at, self.expires_at
        return idle_at if idle_at is not None and expires_at is not None and idle_at < expires_at else expires_at


class Conversation(NamedTuple):
    """A conversation at one version. Never seen: version 0, no sessions.

    `sessions` ascend and end with the current one; older ones are present only where they were loaded.
    """

    id: str
    version: int = 0
    sessions: tuple[Session, ...] = ()

    @property
    def current(self) -> Session | None:
        return self.sessions[-1] if self.sessions else None

    def without_archive(self) -> "Conversation":
        """The current session alone."""
        return self if len(self.sessions) == 1 else self._replace(sessions=self.sessions[-1:])


class HistoryRow(NamedTuple):
    """One version of a conversation and what made it."""

    conversation_id: str
    source: str
    event_id: str
    session: int
    version: int
    kind: Kind
    occurred_at: datetime
    outcome: Outcome
    requested: str | None
    from_status: Status | None
    to_status: Status
    actor: str
    reason: str | None

    @property
    def is_transition(self) -> bool:
        """Whether session or status changed: then it is published."""
        return self.from_status != self.to_status


class Decision(NamedTuple):
    """The conversation after an event, the rows that tell how it got there, and the outcome to count."""

    conversation: Conversation
    rows: tuple[HistoryRow, ...] = ()
    outcome: Outcome = Outcome.NOOP


class Change(NamedTuple):
    """What a batch of events does to one conversation. `outcomes[i]` belongs to `events[i]`."""

    before: Conversation
    after: Conversation
    events: tuple[Event, ...]
    outcomes: tuple[Outcome, ...]
    rows: tuple[HistoryRow, ...]
    clamped: int

    @property
    def effects(self) -> list[Event]:
        """The events that write something; a tick is `applied` only where it made a deadline count."""
        pairs = zip(self.events, self.outcomes, strict=True)
        return [event for event, outcome in pairs if outcome.has_effect]
