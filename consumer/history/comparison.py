"""What is stored of a conversation, beside what its history amounts to."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from consumer.history.replay import History, is_whole, retrace
from consumer.lifecycle.model import CONSUMER_SOURCE, Conversation, HistoryRow, Kind, Outcome, Policy, Session

DEADLINES = ("idle_at", "expires_at")
LATEST_TIMER = timedelta(minutes=15)
"""A ticker sets the timer of a deadline that is overdue so far ahead, at most."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What is stored of a conversation at one moment, `now`. Without a row its version is 0."""

    id: str
    version: int
    row: Session | None
    archive: tuple[Session, ...]
    wake_at: datetime | None
    history: History
    now: datetime

    @property
    def conversation(self) -> Conversation:
        return Conversation(self.id, self.version, (*self.archive, *((self.row,) if self.row else ())))

    @property
    def is_unknown(self) -> bool:
        return not (self.version or self.archive or self.history)


class Result(StrEnum):
    """What a comparison finds."""

    EQUAL = "equal"
    DIFFERS = "differs"
    NOT_WHOLE = "not whole"
    """Rows of the history are missing, pruned or lost: it cannot be folded."""
    OTHER_POLICY = "other policy"
    """The history, or nothing but deadlines, is not what the policy of now makes: nothing can be said."""


class Difference(NamedTuple):
    """A value that is not as the history says. `session` is null for what belongs to the conversation."""

    session: int | None
    name: str
    stored: object
    folded: object


@dataclass(frozen=True, slots=True)
class Finding:
    """A comparison. `target` is the conversation to write instead of what differs; null if there is nothing to do."""

    id: str
    result: Result
    differences: tuple[Difference, ...] = ()
    why: str | None = None
    target: Conversation | None = None


def compare(stored: Stored, policy: Policy) -> Finding:
    """Compares the rows of a conversation with its history, folded under one policy."""
    if not is_whole(stored.history, stored.version):
        kept, known = len(stored.history), max([stored.version, *(row.version for row, _ in stored.history)])
        return Finding(stored.id, Result.NOT_WHOLE, why=f"{kept} of {known} history rows are there")
    retraced = retrace(stored.id, stored.history, policy)
    if retraced.contradiction:
        return Finding(stored.id, Result.OTHER_POLICY, why=retraced.contradiction)
    folded = retraced.conversation
    differences = tuple(_differences(stored, folded))
    if not differences:
        return Finding(stored.id, Result.EQUAL)
    if all(_is_of_another_policy(difference) for difference in differences):
        return Finding(stored.id, Result.OTHER_POLICY, differences, "nothing but deadlines differs")
    return Finding(stored.id, Result.DIFFERS, differences, target=_with_stored_deadlines(folded, stored.row))


def repair_row(target: Conversation, now: datetime) -> HistoryRow:
    """The row of the version in which `target` is written. It changes no status: nothing is published."""
    current = target.sessions[-1]
    version = target.version + 1
    return HistoryRow(
        conversation_id=target.id,
        source=CONSUMER_SOURCE,
        event_id=str(version),
        session=current.number,
        version=version,
        kind=Kind.REPAIR,
        occurred_at=now,
        outcome=Outcome.APPLIED,
        requested=None,
        from_status=current.status,
        to_status=current.status,
        actor="operator",
        reason=None,
    )


def _differences(stored: Stored, folded: Conversation) -> Iterator[Difference]:
    if stored.version != folded.version:
        yield Difference(None, "version", stored.version or None, folded.version)
    *superseded, current = folded.sessions
    yield from _of_session(current.number, stored.row, current)
    archive = {session.number: session for session in stored.archive}
    for session in superseded:
        yield from _of_session(session.number, archive.pop(session.number, None), session)
    for number in archive:
        yield Difference(number, "archived", number, None)
    yield from _of_timer(stored, current)


def _of_session(number: int, stored: Session | None, folded: Session) -> Iterator[Difference]:
    if stored is None:
        yield Difference(number, "row", None, folded.status)
        return
    for name, one, other in zip(Session._fields, stored, folded, strict=True):
        if one != other:
            yield Difference(number, name, one, other)


def _of_timer(stored: Stored, current: Session) -> Iterator[Difference]:
    """As far as it can be known: an open conversation has a timer that is not too late, a closed one has none."""
    if stored.row is None:
        return
    deadline = stored.row.deadline if stored.row.status.is_open else current.deadline
    if current.deadline is None or deadline is None:
        if current.deadline is None and stored.wake_at is not None:
            yield Difference(None, "wake_at", stored.wake_at, None)
    elif stored.wake_at is None or stored.wake_at > max(deadline, stored.now + LATEST_TIMER):
        yield Difference(None, "wake_at", stored.wake_at, deadline)


def _is_of_another_policy(difference: Difference) -> bool:
    """Stored deadlines rule until they are renewed, whatever the policy says by then."""
    return difference.name in DEADLINES and difference.stored is not None and difference.folded is not None


def _with_stored_deadlines(folded: Conversation, row: Session | None) -> Conversation:
    *superseded, current = folded.sessions
    if row is None or (row.number, row.status) != (current.number, current.status):
        return folded
    if [getattr(row, name) is None for name in DEADLINES] != [getattr(current, name) is None for name in DEADLINES]:
        return folded
    kept = current._replace(idle_at=row.idle_at, expires_at=row.expires_at)
    return folded._replace(sessions=(*superseded, kept))
