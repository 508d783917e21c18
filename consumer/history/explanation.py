"""Why a session has its status: the few events that decided it, what they were up against, what would still change it.

The sentences follow from the rules and the policy. Times of then come from the history, folded again; where rows are
missing, or another policy made them, the sentences say less.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from consumer.history.comparison import Stored
from consumer.history.outlook import outlook
from consumer.history.replay import Step, is_whole, retrace
from consumer.history.wording import (
    actor_of,
    moment,
    quoted,
    request_of,
    span,
    why_late,
)
from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    RANK,
    HistoryRow,
    Kind,
    Outcome,
    Policy,
    Session,
    Status,
)

MOST_CHALLENGERS = 5
"""Events that changed nothing, told one by one; of more, only how many there are."""


class Sentence(NamedTuple):
    """A sentence, and the version it is about: null if it is about what may still come."""

    version: int | None
    text: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a session is what it is. `unknown` says why times of then are not known; null if they are."""

    session: Session
    sentences: tuple[Sentence, ...]
    unknown: str | None


class Entry(NamedTuple):
    """A history row, and its session before the event and after it as far as they are known."""

    row: HistoryRow
    recorded_at: datetime
    before: Session | None = None
    after: Session | None = None
    was_current: bool = True


def explain(stored: Stored, number: int, policy: Policy) -> Explanation:
    """Why session `number` has its status. Raises `LookupError` if there is no such session."""
    sessions = {session.number: session for session in stored.conversation.sessions}
    session = sessions[number]
    entries, unknown = _entries(stored, number, policy)
    deciding = _deciding(entries)
    since = deciding[0].row.version if deciding else 0
    later = [entry for entry in entries if entry.row.version > since and not entry.row.is_transition]
    sentences = (
        *(Sentence(entry.row.version, _decided(entry, policy)) for entry in deciding),
        *_challengers([entry for entry in later if entry.row.outcome in (Outcome.OUTRANKED, Outcome.LATE)], policy),
        *(Sentence(entry.row.version, _repaired(entry.row)) for entry in later if entry.row.kind is Kind.REPAIR),
        *(Sentence(None, text) for text in outlook(session, sessions.get(number + 1), policy, stored.now)),
    )
    return Explanation(session, sentences, unknown)


def _entries(stored: Stored, number: int, policy: Policy) -> tuple[list[Entry], str | None]:
    """The rows of a session, and why the states of then are not known, if they are not."""
    of_session = [(row, at) for row, at in stored.history if row.session == number]
    if not is_whole(stored.history, stored.version):
        missing = f"{len(stored.history)} of {stored.version} history rows are there: the others are pruned or lost"
        return [Entry(*entry) for entry in of_session], missing
    retraced = retrace(stored.id, stored.history, policy)
    if retraced.contradiction is not None:
        other = f"the policy of now does not lead to this history: {retraced.contradiction}"
        return [Entry(*entry) for entry in of_session], other
    return [_entry(step) for step in retraced.steps if step.row.session == number], None


def _entry(step: Step) -> Entry:
    number, before = step.row.session, step.before.sessions
    was_current = not before or before[-1].number == number
    return Entry(
        step.row, step.recorded_at, _session(before, number), _session(step.after.sessions, number), was_current
    )


def _session(sessions: Sequence[Session], number: int) -> Session | None:
    return next((session for session in sessions if session.number == number), None)


def _deciding(entries: Sequence[Entry]) -> list[Entry]:
    """The last transition, and those before it that it replaced."""
    transitions = [entry for entry in entries if entry.row.is_transition]
    chain = transitions[-1:]
    for entry in reversed(transitions[:-1]):
        if chain[0].row.outcome not in (Outcome.RECLASSIFIED, Outcome.REINSTATED):
            break
        chain.insert(0, entry)
    return chain


def _decided(entry: Entry, policy: Policy) -> str:
    row = entry.row
    if row.outcome is Outcome.RECLASSIFIED:
        return _reclassified(entry)
    if row.outcome is Outcome.REINSTATED:
        return (
            f"Reinstated as {row.to_status} by {actor_of(row)}'s message of {moment(row.occurred_at)}: it was read at "
            f"{moment(entry.recorded_at)}, after the session had expired, and shows that it was alive."
        )
    if row.kind is Kind.TICK:
        return _timed_out(entry, policy)
    if row.to_status.is_open:
        return _opened(row) if row.from_status is None else _answered(row)
    return _closed(entry)


def _reclassified(entry: Entry) -> str:
    row, before = entry.row, entry.before
    since = f", which had taken effect at {moment(before.closed_at)}" if before and before.closed_at else ""
    return (
        f"Closed as {row.to_status} by {actor_of(row)}, dated {moment(row.occurred_at)}{quoted(row.reason)}: it "
        f"outranked {row.from_status}{since}."
    )


def _timed_out(entry: Entry, policy: Policy) -> str:
    row, session = entry.row, entry.before
    at, decided = moment(row.occurred_at), f"It was decided at {moment(entry.recorded_at)}."
    since = f" after the last activity at {moment(session.last_activity_at)}" if session else ""
    if row.to_status is Status.IDLE_TIMEOUT:
        return f"Idle since {at}: nobody wrote for {_waited(entry, policy.idle_after)}{since}. {decided}"
    if row.from_status is Status.PENDING:
        waited = _waited(entry, policy.pending_ttl)
        return f"Expired at {at} (pending_ttl): nobody answered, and nobody wrote for {waited}{since}. {decided}"
    waited = _waited(entry, policy.progress_ttl)
    return f"Expired at {at} (progress_ttl): nobody wrote for {waited}{since}. {decided}"


def _waited(entry: Entry, ttl: timedelta) -> str:
    return span(entry.row.occurred_at - entry.before.last_activity_at if entry.before else ttl)


def _opened(row: HistoryRow) -> str:
    at = moment(row.occurred_at)
    if row.source == CONSUMER_SOURCE and row.version > 1:
        return (
            f"Opened as {row.to_status} by a split: session {row.session - 1} was closed by an event dated before the "
            f"user's newest message of {at}, but read after it. That message stays in an open session."
        )
    if row.to_status is Status.PENDING:
        return f"Opened as pending by the user's message of {at}: nobody has answered since."
    return f"Opened as {row.to_status} by {actor_of(row)}'s message of {at}: it counts as answered."


def _answered(row: HistoryRow) -> str:
    at = moment(row.occurred_at)
    if row.from_status is Status.IDLE_TIMEOUT:
        return f"In progress again by {actor_of(row)}'s message of {at}: the session had been idle."
    return f"In progress by {actor_of(row)}'s message of {at}: it answered the pending session."


def _closed(entry: Entry) -> str:
    row, before = entry.row, entry.before
    text = f"Closed as {row.to_status} by {request_of(row)}, dated {moment(row.occurred_at)}{quoted(row.reason)}."
    if row.from_status is None:
        return f"{text} No earlier event of this conversation had been read."
    if before is not None and before.expires_at is not None:
        text += f" It was {row.from_status}: a tick would have closed it as expired at {moment(before.expires_at)}."
    else:
        text += f" It was {row.from_status}, which yields to any close."
    newest = before.last_user_message_at if before else None
    if newest is not None and newest > row.occurred_at:
        text += f" The user's newer message of {moment(newest)} was split off into session {row.session + 1}."
    return text


def _challengers(entries: Sequence[Entry], policy: Policy) -> Iterator[Sentence]:
    for entry in entries[-MOST_CHALLENGERS:]:
        text = _outranked(entry) if entry.row.outcome is Outcome.OUTRANKED else _late(entry, policy)
        yield Sentence(entry.row.version, text)
    if (more := len(entries) - MOST_CHALLENGERS) > 0:
        yield Sentence(None, f"{more} more events before these changed no status: see `conversation history`.")


def _outranked(entry: Entry) -> str:
    row, before, after = entry.row, entry.before, entry.after
    asked = Status.USER_CLOSED if row.requested == "close" else Status(row.requested or "")
    why = "of two equals the first stays" if asked is row.from_status else f"{row.from_status} ranks higher"
    moved = ""
    if before and after and before.closed_at != after.closed_at and after.closed_at:
        moved = f" As the earlier one it dates the closing: {moment(after.closed_at)}."
    return f"Outranked: {asked} by {request_of(row)}, dated {moment(row.occurred_at)}; {why}.{moved}"


def _late(entry: Entry, policy: Policy) -> str:
    row = entry.row
    why = f"session {row.session} was {row.to_status} by then"
    if not entry.was_current and row.kind is Kind.INBOUND_MESSAGE and row.requested != "close":
        why = f"by its date it belongs to session {row.session}, which another had followed"
    elif entry.before is not None:
        why = why_late(row, entry.before, entry.recorded_at, policy)
    what = f"{row.requested} by {request_of(row)}" if row.requested in RANK else f"{request_of(row)}"
    return f"Late: {what}, dated {moment(row.occurred_at)}; {why}."


def _repaired(row: HistoryRow) -> str:
    return f"The row was written anew from its history at {moment(row.occurred_at)}; that changed no status."
