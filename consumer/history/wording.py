"""Times, durations and parties, as the sentences about a history name them."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from consumer.lifecycle.model import Author, HistoryRow, Kind, Policy, Session, Status

_PARTIES = {Author.USER: "the user", Author.AGENT: "an agent", Author.SUPPORT: "support", Author.SYSTEM: "the system"}


def moment(at: datetime) -> str:
    """UTC, to the millisecond."""
    return f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}"


def span(duration: timedelta) -> str:
    """As `15 min`, `48 h`, `10 s`."""
    seconds = duration.total_seconds()
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:,.0f} {unit}"
    return f"{seconds:,.6g} s"


def listed(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]


def actor_of(row: HistoryRow) -> str:
    """Who it was: a party, or whoever a close names."""
    return _PARTIES[Author(row.actor)] if row.kind is Kind.INBOUND_MESSAGE else row.actor


def request_of(row: HistoryRow) -> str:
    """What somebody asked for, by whom."""
    if row.kind is not Kind.INBOUND_MESSAGE:
        return row.actor
    return f"{actor_of(row)}'s {'goodbye' if row.requested == 'close' else 'message'}"


def quoted(reason: str | None) -> str:
    return f' with the reason "{reason}"' if reason else ""


def why_late(row: HistoryRow, session: Session, now: datetime, policy: Policy) -> str:
    """Which rule made an event late, for `session` as it was before."""
    assert session.closed_at is not None
    closed = f"the closing at {moment(session.closed_at)}"
    if row.kind is Kind.MANUAL_CLOSE:
        return f"it is dated more than {span(policy.reclassification_window)} after {closed}"
    if row.requested != "close":
        return _why_message_is_late(row, session, now, policy)
    if row.occurred_at > session.closed_at + policy.goodbye_grace:
        return f"a goodbye counts until {span(policy.goodbye_grace)} after {closed}"
    return f"it is dated more than {span(policy.reclassification_window)} after {closed}"


def _why_message_is_late(row: HistoryRow, session: Session, now: datetime, policy: Policy) -> str:
    assert session.closed_at is not None
    closed, at = f"the closing at {moment(session.closed_at)}", row.occurred_at
    if row.actor == Author.SYSTEM:
        return "a message of the system neither opens a session nor reopens one"
    if at > session.closed_at:
        return f"what an agent or support writes within {span(policy.follow_up_grace)} after {closed} opens nothing"
    if session.status is not Status.EXPIRED:
        return f"it is not newer than {closed}, and a closing on purpose stays"
    if at <= session.last_activity_at:
        return f"it is not newer than the last activity at {moment(session.last_activity_at)}"
    return f"it was read at {moment(now)}, {span(policy.reclassification_window)} or more after {closed}"
