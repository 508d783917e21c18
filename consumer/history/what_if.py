"""What would have happened under another policy: the same events, decided twice by the rules of the service.

Each event is decided at the time at which it was decided first: by the policy in force and, from a moment on, by the
changed one too. What was stored before that moment stands, deadlines included, as if the policy had been changed then.

Ticks that did nothing leave no row, so the timer is not played. The rules do not need it: a deadline takes effect
before the next event dated after it, or at the end. Only an event that came after a deadline but is dated before it may
find a session open that a tick would have closed. It renews what it would have reinstated.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

from consumer.history.replay import event_of
from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    Conversation,
    Event,
    HistoryRow,
    Identity,
    Outcome,
    Policy,
    Session,
    Status,
    Tick,
)
from consumer.lifecycle.rules import apply


class Comparison(NamedTuple):
    """The policy in force, the changed one, the moment of the change, and the moment to which all is settled."""

    policy: Policy
    changed: Policy
    since: datetime
    until: datetime


class Ends(NamedTuple):
    """The sessions of a conversation that were open at the change or touched after it, as either policy leaves them."""

    conversation_id: str
    before: tuple[Session, ...]
    after: tuple[Session, ...]

    @property
    def statuses_differ(self) -> bool:
        return [session.status for session in self.before] != [session.status for session in self.after]

    @property
    def times_differ(self) -> bool:
        return [session.closed_at for session in self.before] != [session.closed_at for session in self.after]


@dataclass(slots=True)
class Tally:
    """What came of all conversations. Of those that ended otherwise, the first `limit` are kept."""

    limit: int = 0
    conversations: int = 0
    sessions_before: Counter[Status] = field(default_factory=Counter)
    sessions_after: Counter[Status] = field(default_factory=Counter)
    outcomes_before: Counter[Outcome] = field(default_factory=Counter)
    outcomes_after: Counter[Outcome] = field(default_factory=Counter)
    otherwise: int = 0
    at_another_time: int = 0
    not_as_stored: int = 0
    left_out: int = 0
    duplicates: int = 0
    examples: list[Ends] = field(default_factory=list)

    @property
    def events(self) -> int:
        return self.outcomes_before.total()

    def add(self, ends: Ends) -> None:
        self.conversations += 1
        self.sessions_before.update(session.status for session in ends.before)
        self.sessions_after.update(session.status for session in ends.after)
        if ends.statuses_differ:
            self.otherwise += 1
            if len(self.examples) < self.limit:
                self.examples.append(ends)
        elif ends.times_differ:
            self.at_another_time += 1


class TwoFates:
    """A conversation as the policy in force has it, and as the changed one has it."""

    __slots__ = ("_comparison", "_tally", "after", "before", "start")

    def __init__(self, start: Conversation, comparison: Comparison, tally: Tally) -> None:
        self.before = self.after = start
        self.start: Conversation | None = None
        self._comparison = comparison
        self._tally = tally

    def decide(self, event: Event, now: datetime) -> tuple[HistoryRow, ...]:
        """The rows that the policy in force makes of the event."""
        policy, changed, since, _ = self._comparison
        decision = apply(self.before, event, policy, now)
        if self.start is None and now < since:
            self.before = decision.conversation
            return decision.rows
        if self.start is None:
            self.start = self.after = self.before
        other = apply(self.after, event, changed, now)
        self.before, self.after = decision.conversation, other.conversation
        if not isinstance(event, Tick):
            self._tally.outcomes_before[decision.outcome] += 1
            self._tally.outcomes_after[other.outcome] += 1
        return decision.rows

    def end(self) -> Ends | None:
        """Settles both, and counts what they have come to; None if no event came after the change."""
        if self.start is None:
            return None
        policy, changed, _, until = self._comparison
        end = Tick(self.start.id, CONSUMER_SOURCE, "", until)
        before = apply(self.before, end, policy, until).conversation.sessions
        after = apply(self.after, end, changed, until).conversation.sessions
        untouched = _untouched(self.start.sessions, before, after)
        ends = Ends(
            self.start.id,
            tuple(session for session in before if session.number not in untouched),
            tuple(session for session in after if session.number not in untouched),
        )
        self._tally.add(ends)
        return ends


class HistoryReplay:
    """One conversation, from its history rows by version.

    Where older rows are pruned, it starts with the first message left that opens a session; `archive` has the sessions
    before that one. The rows before it are left out.
    """

    def __init__(self, conversation_id: str, archive: Sequence[Session], comparison: Comparison, tally: Tally) -> None:
        self.conversation_id = conversation_id
        self._archive = archive
        self._comparison = comparison
        self._tally = tally
        self._fates: TwoFates | None = None
        self._version = 0
        self._stored = deque[HistoryRow]()
        self._made = deque[HistoryRow]()
        self._as_stored = True

    def add(self, row: HistoryRow, recorded_at: datetime) -> None:
        if row.version != self._version + 1:
            self._fates = None
        self._version = row.version
        if self._fates is None and (start := self._start(row)) is not None:
            self._fates = TwoFates(start, self._comparison, self._tally)
        if self._fates is None:
            self._tally.left_out += recorded_at >= self._comparison.since and row.source != CONSUMER_SOURCE
            return
        if (event := event_of(row)) is not None:
            self._made.extend(self._fates.decide(event, recorded_at))
        self._stored.append(row)
        self._compare()

    def end(self) -> Ends | None:
        ends = self._fates.end() if self._fates is not None else None
        self._tally.not_as_stored += ends is not None and not (self._as_stored and self._made == self._stored)
        return ends

    def _start(self, row: HistoryRow) -> Conversation | None:
        """What there was before `row`, if that is known."""
        self._made.clear()
        self._stored.clear()
        if row.version == 1:
            return Conversation(row.conversation_id)
        if row.from_status is not None or row.source == CONSUMER_SOURCE:
            return None
        before = tuple(session for session in self._archive if session.number < row.session)
        return Conversation(row.conversation_id, row.version - 1, before) if before else None

    def _compare(self) -> None:
        """An event may make a row before its own and one after it: the rows come in the same order, not at once."""
        while self._made and self._stored:
            self._as_stored &= self._made.popleft() == self._stored.popleft()


class LogReplay:
    """One conversation, from events in the order of the log. Before them it is unknown."""

    def __init__(self, conversation_id: str, comparison: Comparison, tally: Tally) -> None:
        self._fates = TwoFates(Conversation(conversation_id), comparison, tally)
        self._tally = tally
        self._known = set[Identity]()

    def add(self, event: Event, now: datetime) -> None:
        """An event that came before touches nothing."""
        if not isinstance(event, Tick):
            if (event.source, event.event_id) in self._known:
                self._tally.duplicates += 1
                return
            self._known.add((event.source, event.event_id))
        self._fates.decide(event, now)

    def end(self) -> Ends | None:
        return self._fates.end()


def _untouched(start: Sequence[Session], before: Sequence[Session], after: Sequence[Session]) -> set[int]:
    """The numbers of the sessions that were closed at the start and are as they were under either policy."""
    return {
        session.number
        for session, one, other in zip(start, before, after, strict=False)
        if not session.status.is_open and session == one == other
    }
