"""The lifecycle, explored: every status, every kind of event, and every order of times that some events lead to."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    OPEN,
    Author,
    Conversation,
    Decision,
    Event,
    HistoryRow,
    Intent,
    ManualClose,
    Message,
    Outcome,
    Policy,
    Session,
    Status,
    Tick,
)
from consumer.lifecycle.rules import apply
from tests.traffic import CLOSINGS

T0 = datetime(2026, 3, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
DEPTH = 4
"""Events in a row: enough for every status, and for every rule."""
LONG_AFTER = timedelta(days=1000)
Make = Callable[[datetime], Event]


@dataclass(frozen=True, slots=True)
class Step:
    """One event applied to one conversation. `event` is the kind's name in the table."""

    event: str
    before: Conversation
    made: Event
    now: datetime
    decision: Decision

    @property
    def row(self) -> HistoryRow | None:
        """The event's own."""
        return next((row for row in self.decision.rows if row.source != CONSUMER_SOURCE), None)


def kinds() -> dict[str, Make]:
    """One of every kind of event, by the name that it has in the table."""
    same: dict[str, Any] = {"conversation_id": "c", "source": "s", "event_id": "e"}

    def message(author: Author, intent: Intent | None = None) -> Make:
        return lambda at: Message(**same, at=at, author=author, intent=intent)

    def close(status: Status) -> Make:
        return lambda at: ManualClose(**same, at=at, status=status, actor="somebody")

    return {
        **{f"{author} message": message(author) for author in Author},
        "goodbye": message(Author.USER, Intent.CLOSE),
        **{f"close {status}": close(status) for status in CLOSINGS},
        "tick": lambda at: Tick(**same, at=at),
    }


def explored(policy: Policy, depth: int = DEPTH) -> Iterator[Step]:
    """Every step from every conversation that differs from those seen before in more than how far apart its times lie.

    Decided in time, and long after.
    """
    frontier, seen = [Conversation("c")], set[object]()
    for _ in range(depth):
        reached: list[Conversation] = []
        for before in frontier:
            for step in _steps(before, policy):
                yield step
                if step.decision.rows and (shape := _shape(step.decision.conversation)) not in seen:
                    seen.add(shape)
                    reached.append(step.decision.conversation)
        frontier = reached


def _steps(before: Conversation, policy: Policy) -> Iterator[Step]:
    for at in _times(before, policy):
        for name, make in kinds().items():
            for now in _nows(before, at, policy):
                yield Step(name, before, make(at), now, apply(before, make(at), policy, now))


def _nows(before: Conversation, at: datetime, policy: Policy) -> list[datetime]:
    """In time, long after, and around the moment from which nothing is reinstated any more."""
    current = before.current
    if current is None or current.status is not Status.EXPIRED or current.closed_at is None:
        return [at, at + LONG_AFTER]
    last = current.closed_at + policy.reclassification_window
    return [max(at, last + nudge) for nudge in (-MICROSECOND, timedelta(0), LONG_AFTER)]


def _times(conversation: Conversation, policy: Policy) -> list[datetime]:
    """At each moment that a rule looks at, just before and just after it: every order the event's time can be in."""
    marks = sorted({at for session in conversation.sessions for at in _marks(session, policy)} or {T0})
    between = [one + (other - one) / 2 for one, other in pairwise(marks)]
    around = [mark + nudge for mark in marks for nudge in (-MICROSECOND, timedelta(0), MICROSECOND)]
    return sorted({*around, *between, marks[0] - timedelta(hours=1), marks[-1] + timedelta(hours=1)})


def _marks(session: Session, policy: Policy) -> Iterator[datetime]:
    graces = (timedelta(0), policy.goodbye_grace, policy.follow_up_grace, policy.reclassification_window)
    yield from (at for at in _moments(session) if at is not None)
    if session.closed_at is not None:
        yield from (session.closed_at + grace for grace in graces)


def _moments(session: Session) -> tuple[datetime | None, ...]:
    return (
        *(session.opened_at, session.last_activity_at, session.last_user_message_at, session.last_agent_message_at),
        *(session.idle_at, session.expires_at, session.closed_at),
    )


def _shape(conversation: Conversation) -> object:
    """What rules can tell conversations apart by: statuses, who has written, and the order of the moments."""
    *older, current = conversation.sessions
    order = sorted({at for at in _moments(current) if at is not None})
    return (
        tuple(session.status for session in older[-1:]),
        current.status,
        current.accepted_by,
        min(current.user_messages, 2),
        min(current.agent_messages, 2),
        tuple(at and order.index(at) for at in _moments(current)),
    )


@dataclass(slots=True)
class Survey:
    """What was seen on the way."""

    moves: set[tuple[str, str, str]] = field(default_factory=set)
    """(from, to, by) of every transition."""
    cells: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    """(event, status met) -> what became of it."""
    left: set[Status] = field(default_factory=set)
    reached: set[Status] = field(default_factory=set)
    outcomes: set[Outcome] = field(default_factory=set)

    @property
    def missing_cases(self) -> set[tuple[str, str]]:
        """Pairs of event and status of which nothing is known."""
        return {(event, status) for event in kinds() for status in ("none", *Status)} - self.cells.keys()


def survey(steps: Iterable[Step]) -> Survey:
    found = Survey()
    for step in steps:
        met, answer = _met(step)
        if answer is not None:
            found.cells.setdefault((step.event, met), set()).add(answer)
        found.moves.update(_moves(step))
        found.outcomes.add(step.decision.outcome)
        found.reached.update(session.status for session in step.decision.conversation.sessions)
        if step.before.current is not None and _leaves(step):
            found.left.add(step.before.current.status)
    return found


def _met(step: Step) -> tuple[str, str | None]:
    """(status met in the current session, what became of the event); null if it belongs to an older session."""
    row, current = step.row, step.before.current
    timeouts = [row for row in step.decision.rows if row.source == CONSUMER_SOURCE and row.actor == "timer"]
    if row is None:
        return current.status if current else "none", step.decision.outcome
    met = timeouts[-1].to_status if timeouts else current.status if current else "none"
    if current is not None and row.session < current.number:
        return met, None
    if row.outcome in (Outcome.LATE, Outcome.OUTRANKED):
        return met, row.outcome
    opens = current is not None and row.session > current.number
    split = any(other.version > row.version for other in step.decision.rows)
    how = "reinstated, " if row.outcome is Outcome.REINSTATED else "next session, " if opens else ""
    return met, f"{how}{row.to_status}{', next session' if split else ''}"


def _moves(step: Step) -> Iterator[tuple[str, str, str]]:
    """(from, to, by) of each transition; the next session follows from the status of the one before."""
    for row in step.decision.rows:
        by = "timer" if row.source == CONSUMER_SOURCE and row.actor == "timer" else _short(step, row)
        if row.from_status is not None and row.is_transition:
            yield row.from_status, row.to_status, by
        elif row.from_status is None and step.before.current is None:
            yield "[*]", row.to_status, by
        elif row.from_status is None and row.source != CONSUMER_SOURCE:
            yield _met(step)[0], row.to_status, f"next session by {by}"


def _short(step: Step, row: HistoryRow) -> str:
    if row.outcome is Outcome.REINSTATED:
        return "proof of life"
    return "close" if step.event.startswith("close") else step.event.removesuffix(" message")


def _leaves(step: Step) -> bool:
    after, before = step.decision.conversation.sessions[-1], step.before.sessions[-1]
    return (after.number, after.status) != (before.number, before.status)


def markdown(found: Survey) -> str:
    """The state diagram and the table of the README."""
    return f"```mermaid\n{diagram(found)}\n```\n\n{table(found)}"


def diagram(found: Survey) -> str:
    """Mermaid: what each kind of event, or the timer, makes of a status."""
    moves, groups = set(found.moves), {"open": set(OPEN), "closed": set(Status) - OPEN}
    for name, members in groups.items():
        for _, to, by in found.moves:
            alike = {(member, to, by) for member in members if member != to}
            if alike <= moves and len(alike) > 1:
                moves = (moves - alike) | {(name, to, by)}
    edges: dict[tuple[str, str], list[str]] = {}
    for before, after, by in sorted(moves):
        edges.setdefault((before, after), []).append(by)
    states = [
        line
        for name, members in groups.items()
        for line in (f"    state {name} {{", *(f"        {s}" for s in Status if s in members), "    }")
    ]
    arrows = [f"    {before} --> {after}: {', '.join(by)}" for (before, after), by in edges.items()]
    return "\n".join(["stateDiagram-v2", *states, *arrows])


def table(found: Survey) -> str:
    """Markdown: what can become of an event, by the status that it meets once the current session is settled."""
    statuses = ["none", *Status]
    head = ["| Event | " + " | ".join(statuses) + " |", "|---" * (len(statuses) + 1) + "|"]
    rows = [
        "| " + " | ".join([event, *("<br>".join(sorted(found.cells[event, met])) for met in statuses)]) + " |"
        for event in kinds()
    ]
    return "\n".join([*head, *rows])
