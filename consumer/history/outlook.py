"""What would still change the status of a session, by the rules."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from consumer.history.wording import listed, moment, span
from consumer.lifecycle.model import RANK, Policy, Session, Status


def outlook(session: Session, following: Session | None, policy: Policy, now: datetime) -> Iterator[str]:
    """Sentences. `following` is the session after it; null if it is the current one."""
    if session.status.is_open:
        yield from _of_open(session, now)
        return
    yield _of_higher_rank(session, following, policy)
    if following is not None:
        yield f"Session {following.number} has followed: no message changes this one."
        return
    if session.status is Status.EXPIRED:
        yield _of_proof(session, policy, now)
    yield _of_next_session(session, policy)


def _of_open(session: Session, now: datetime) -> Iterator[str]:
    assert session.expires_at is not None
    if (due := session.deadline) is not None and due < now:
        to = "idle_timeout" if due == session.idle_at else "expired"
        yield f"Its deadline of {moment(due)} has passed: the next tick or newer event makes it {to}, dated then."
    elif session.idle_at is not None:
        yield f"Unless somebody writes, it becomes idle_timeout at {moment(session.idle_at)}."
    if session.expires_at >= now:
        yield f"Unless somebody writes, it expires at {moment(session.expires_at)}."
    yield "Any close replaces an open status."


def _of_higher_rank(session: Session, following: Session | None, policy: Policy) -> str:
    """An event belongs to the session in which it is dated."""
    assert session.closed_at is not None
    higher = [status for status in reversed(RANK) if RANK[status] < RANK[session.status]]
    if not higher:
        return f"Nothing outranks {session.status}."
    since = f"from {moment(session.opened_at)} and " if session.number > 1 else ""
    until = _until(session.closed_at, policy.reclassification_window, following)
    goodbye = ""
    if Status.USER_CLOSED in higher:
        goodbye = f" So would a goodbye dated {_until(session.closed_at, policy.goodbye_grace, following)}."
    return f"{_with_article(listed(higher))} dated {since}{until} would still replace it.{goodbye}"


def _until(closed_at: datetime, window: timedelta, following: Session | None) -> str:
    if following is not None and following.opened_at <= closed_at + window:
        return f"before {moment(following.opened_at)} (session {following.number})"
    return f"by {moment(closed_at + window)} ({span(window)} after the closing)"


def _of_proof(session: Session, policy: Policy, now: datetime) -> str:
    assert session.closed_at is not None
    until = session.closed_at + policy.reclassification_window
    if now >= until:
        return f"No message from before the expiry reinstates it any more: the time for that ended at {moment(until)}."
    return (
        f"A message of the user, an agent or support dated after {moment(session.last_activity_at)} and by "
        f"{moment(session.closed_at)}, read before {moment(until)}, would reinstate it."
    )


def _of_next_session(session: Session, policy: Policy) -> str:
    assert session.closed_at is not None
    expired, after = session.status is Status.EXPIRED, moment(session.closed_at)
    others = after if expired else moment(session.closed_at + policy.follow_up_grace)
    return (
        f"The user's next message, dated after {after}, opens session {session.number + 1}; so does one of an agent or "
        f"support dated after {others}."
    )


def _with_article(words: str) -> str:
    return f"{'An' if words[0] in 'aeio' else 'A'} {words}"
