"""What the checker compares: the ledger of what was sent, the evidence of what a run left behind, its verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field

from consumer.history.replay import History
from consumer.lifecycle.model import Conversation, Event, HistoryRow, Tick
from consumer.records import Record

Key = tuple[str, str, str]
"""Conversation id, source, event id: what an event is known by."""
Place = tuple[str, int]
"""Topic and partition."""


@dataclass(slots=True)
class Ledger:
    """What was sent: `events` were acknowledged, by the log or by the service; of `unsure` nobody knows."""

    events: set[Key] = field(default_factory=set)
    unsure: set[Key] = field(default_factory=set)
    poison: Counter[tuple[bytes | None, bytes | None]] = field(default_factory=Counter)
    written: set[Key] = field(default_factory=set)
    """Those that came, or came as well, by the service."""
    records: int = 0
    direct: int = 0

    def note(self, event: Event) -> None:
        if not isinstance(event, Tick):
            self.events.add(key_of(event))

    def note_written(self, event: Event) -> None:
        """The service has acknowledged it."""
        self.direct += 1
        if not isinstance(event, Tick):
            self.written.add(key_of(event))
            self.events.add(key_of(event))


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, and the place in the log that it names."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Move:
    """A change of a stored offset."""

    topic: str
    partition: int
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Published:
    """A record of the transition topic."""

    conversation_id: str
    version: int
    event_id: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a run left behind. `conversations` have all their sessions; `offsets` are the next ones.

    `published` is the transition topic, in its order; null where nothing publishes. After rewinds it also has
    transitions that were undone.
    """

    conversations: Mapping[str, Conversation]
    histories: Mapping[str, History]
    log: Sequence[Record]
    letters: Sequence[Letter]
    offsets: Mapping[Place, int]
    moves: Sequence[Move]
    published: Sequence[Published] | None = None
    rewinds: int = 0
    given_up: Set[tuple[str, int, int]] = frozenset()
    """Places (topic, partition, offset) that were deleted before they were applied, and that somebody has then set the
    offset past."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant: how many things were looked at, and those that break it."""

    invariant: str
    looked_at: int
    violations: tuple[str, ...]
    story: tuple[str, ...] = ()
    """What happened to the first conversation that breaks it, in order."""

    @property
    def holds(self) -> bool:
        return not self.violations


def key_of(event: Event | HistoryRow) -> Key:
    return event.conversation_id, event.source, event.event_id


def place_of(record: Record | Letter) -> tuple[str, int, int]:
    return record.topic, record.partition, record.offset
