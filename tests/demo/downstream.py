"""A service downstream: it has the status of every conversation from the transition topic alone."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from consumer.lifecycle.model import Conversation
from schemas import Transition
from tests.checker.ledger import Verdict


@dataclass(slots=True)
class Downstream:
    """Reads transitions in the order of the topic and drops those that it knows."""

    known: set[str] = field(default_factory=set)
    statuses: dict[str, tuple[int, int, datetime, str]] = field(default_factory=dict)
    """Conversation id -> its last session, the latest version of that, when it was decided, and the status."""
    repeats: int = 0

    def read(self, transitions: Iterable[Transition]) -> None:
        for event in transitions:
            if event.id in self.known:
                self.repeats += 1
                continue
            self.known.add(event.id)
            # A closing may come to be reclassified when the next session is open: the status is that of the last one.
            place = event.data.session, event.data.version, event.time, event.data.to_status
            self.statuses[event.subject] = max(place, self.statuses.get(event.subject, place))

    def agrees(self, conversations: Mapping[str, Conversation]) -> Verdict:
        """Whether it has the current session and status of each conversation."""
        expected = {key: (c.sessions[-1].number, str(c.sessions[-1].status)) for key, c in conversations.items()}
        found = {key: (session, status) for key, (session, _, _, status) in self.statuses.items()}
        wrong = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
        return Verdict("a reader of the transitions alone agrees with the tables", len(expected), tuple(sorted(wrong)))
