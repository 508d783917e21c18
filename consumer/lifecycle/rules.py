"""The lifecycle of a conversation: what an event does to it. Pure: no clock, no I/O, no await.

A conversation is a sequence of sessions 1, 2, 3, ...; only the last, the *current* one, can be open. `apply` decides
one event, `fold` a batch of them.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import assert_never

from consumer.lifecycle.draft import Draft
from consumer.lifecycle.model import (
    AGENT,
    APPLIED,
    CLOSED_BY,
    IDLE_TIMEOUT,
    OPEN,
    PENDING,
    PROGRESS,
    RANK,
    SUPPORT,
    SYSTEM,
    USER,
    Author,
    Change,
    Closing,
    Conversation,
    Decision,
    Event,
    Identity,
    Kind,
    ManualClose,
    Message,
    Outcome,
    Policy,
    Session,
    Status,
    Tick,
)


def fold(
    conversation: Conversation, events: Sequence[Event], known: Collection[Identity], policy: Policy, now: datetime
) -> Change:
    """Applies `events` in order. One whose identity is in `known`, or came before in `events`, touches nothing.

    A tick has no identity: it leaves no row of its own and may be repeated at will.
    """
    draft, seen = Draft(conversation), set(known)
    outcomes: list[Outcome] = []
    clamped, latest = 0, now + policy.clock_tolerance
    for event in events:
        if not isinstance(event, Tick):
            identity = (event.source, event.event_id)
            if identity in seen:
                outcomes.append(Outcome.DUPLICATE)
                continue
            seen.add(identity)
        clamped += event.at > latest
        dated = event if event.at <= latest else event._replace(at=latest)
        outcomes.append(_apply(draft, dated, policy, now))
    after = Conversation(draft.conversation_id, draft.version, tuple(draft.sessions))
    return Change(conversation, after, tuple(events), tuple(outcomes), tuple(draft.rows), clamped)


def apply(conversation: Conversation, event: Event, policy: Policy, now: datetime) -> Decision:
    """What `event` does to `conversation`. Never raises on valid input; nothing written means no rows."""
    change = fold(conversation, [event], (), policy, now)
    return Decision(change.after, change.rows, change.outcomes[0])


def reaches_back(conversation: Conversation, events: Iterable[Event], now: datetime) -> bool:
    """Whether deciding `events` takes older sessions too, as it may whenever the database's clock ran back."""
    current = conversation.sessions[-1]
    return current.number > 1 and (current.opened_at > now or any(event.at < current.opened_at for event in events))


def deadlines(status: Status, last_activity_at: datetime, policy: Policy) -> tuple[datetime | None, datetime | None]:
    """(`idle_at`, `expires_at`) of a session in `status`, last active then; null where the timer has nothing to do."""
    if status is PENDING:
        return None, last_activity_at + policy.pending_ttl
    if status is PROGRESS:
        return last_activity_at + policy.idle_after, last_activity_at + policy.progress_ttl
    return None, last_activity_at + policy.progress_ttl if status is IDLE_TIMEOUT else None


def _apply(draft: Draft, event: Event, policy: Policy, now: datetime) -> Outcome:
    if isinstance(event, Tick):
        return _tick(draft, min(event.at, now), policy)
    _settle(draft, event.at, policy)
    if isinstance(event, ManualClose) or event.is_goodbye:
        return _close(draft, event, policy)
    return _message(draft, event, policy, now)


def _tick(draft: Draft, as_of: datetime, policy: Policy) -> Outcome:
    if (before := draft.current) is None:
        return Outcome.UNKNOWN
    _settle(draft, as_of, policy)
    if draft.current is not before:
        return APPLIED
    return Outcome.EARLY if before.status.is_open else Outcome.NOOP


def _settle(draft: Draft, as_of: datetime, policy: Policy) -> None:
    """Lets each deadline before `as_of` take effect in order, dated at the deadline: correctness never needs a tick."""
    session = draft.current
    while session is not None and (due := session.deadline) is not None and due < as_of:
        session = _timed_out(session, policy)
        draft.cause(Kind.TICK, "timer", session, due)


def _timed_out(session: Session, policy: Policy) -> Session:
    if session.deadline == session.idle_at:
        return _moved(session, IDLE_TIMEOUT, policy)
    assert session.expires_at is not None
    reason = "pending_ttl" if session.status is PENDING else "progress_ttl"
    return _closed(session, Status.EXPIRED, session.expires_at, reason)


def _message(draft: Draft, message: Message, policy: Policy, now: datetime) -> Outcome:
    session = draft.session_at(message.at)
    if session is None:
        return draft.record(message, _opened_by(message, 1, policy), APPLIED)
    if session.number != draft.sessions[-1].number:
        return draft.record(message, session, Outcome.LATE)
    if session.status in OPEN:
        return draft.record(message, _received(session, message, policy), APPLIED)
    if _opens_the_next(session, message, policy):
        return draft.record(message, _opened_by(message, session.number + 1, policy), APPLIED)
    if _proves_alive(session, message, policy, now):
        return draft.record(message, _received(_reopened(session), message, policy), Outcome.REINSTATED)
    return draft.record(message, session, Outcome.LATE)


def _opens_the_next(closed: Session, message: Message, policy: Policy) -> bool:
    assert closed.closed_at is not None
    match message.author:
        case Author.USER:
            return message.at > closed.closed_at
        case Author.AGENT | Author.SUPPORT:
            grace = timedelta(0) if closed.status is Status.EXPIRED else policy.follow_up_grace
            return message.at > closed.closed_at + grace
        case Author.SYSTEM:
            return False
        case _:
            assert_never(message.author)


def _proves_alive(closed: Session, message: Message, policy: Policy, now: datetime) -> bool:
    """Automatic closing yields to evidence of activity before it; a human's does not."""
    assert closed.closed_at is not None
    return (
        closed.status is Status.EXPIRED
        and message.author is not SYSTEM
        and message.at > closed.last_activity_at
        and now - closed.closed_at < policy.reclassification_window
    )


def _close(draft: Draft, event: Closing, policy: Policy) -> Outcome:
    """A manual close or a goodbye."""
    session = draft.session_at(event.at)
    if session is None and isinstance(event, ManualClose):
        return draft.record(event, _closed_by(event, _opened(1, event.at, policy)), APPLIED)
    if session is None:
        session = _opened(1, event.at, policy)
        draft.cause(event.kind, USER, session, event.at)
    if session.status.is_open:
        return _close_open(draft, session, event, policy)
    return _close_closed(draft, session, event, policy)


def _close_open(draft: Draft, session: Session, event: Closing, policy: Policy) -> Outcome:
    """Closes the session; messages the user wrote after `event`, though read before it, stay in an open one."""
    if isinstance(event, Message):
        session = _received(session, event, policy)
    newest = session.last_user_message_at
    if newest is None or newest <= event.at:
        return draft.record(event, _closed_by(event, session), APPLIED)
    draft.record(event, _closed_by(event, _closed_part(session, newest, event.at)), APPLIED)
    draft.cause(Kind.INBOUND_MESSAGE, USER, _next_session(session, newest, policy), newest)
    return APPLIED


def _close_closed(draft: Draft, session: Session, event: Closing, policy: Policy) -> Outcome:
    """The closing priority. Rank is judged before lateness; only what is late leaves `closed_at` alone."""
    assert session.closed_at is not None
    if isinstance(event, Message) and event.at > session.closed_at + policy.goodbye_grace:
        return draft.record(event, session, Outcome.LATE)
    outcome, closed_at = Outcome.OUTRANKED, session.closed_at
    if RANK[_closing_status(event)] < RANK[session.status]:
        if event.at > closed_at + policy.reclassification_window:
            return draft.record(event, session, Outcome.LATE)
        outcome = Outcome.RECLASSIFIED
        session = _closed_by(event, session)._replace(reclassified_at=event.at)
    floor = max(session.opened_at, session.last_user_message_at or session.opened_at)
    return draft.record(event, session._replace(closed_at=max(floor, min(closed_at, event.at))), outcome)


def _opened(number: int, at: datetime, policy: Policy) -> Session:
    """An open session in which nobody has written yet."""
    blank = Session(number, PENDING, at, accepted_at=None, accepted_by=None, last_activity_at=at)
    return _moved(blank, PENDING, policy)


def _opened_by(message: Message, number: int, policy: Policy) -> Session:
    return _received(_opened(number, message.at, policy), message, policy)


def _received(session: Session, message: Message, policy: Policy) -> Session:
    """The open session after a message: counted, accepted if it is the first answer, renewed if it is the newest."""
    at, author = message.at, message.author
    by_user, answered = author is USER, author is AGENT or author is SUPPORT
    accepts = not by_user and session.accepted_at is None
    is_newest = at > session.last_activity_at and (author is not SYSTEM or accepts)
    resumes = is_newest and session.status is IDLE_TIMEOUT
    status = PROGRESS if accepts or resumes else session.status
    active_at = at if is_newest else session.last_activity_at
    renews = is_newest or status is not session.status
    idle_at, expires_at = deadlines(status, active_at, policy) if renews else (session.idle_at, session.expires_at)
    return Session(
        session.number,
        status,
        session.opened_at,
        at if accepts else session.accepted_at,
        author if accepts else session.accepted_by,
        active_at,
        _later(session.last_user_message_at, at) if by_user else session.last_user_message_at,
        _later(session.last_agent_message_at, at) if answered else session.last_agent_message_at,
        session.user_messages + by_user,
        session.agent_messages + answered,
        idle_at,
        expires_at,
        session.closed_at,
        session.closed_by,
        session.close_reason,
        session.reclassified_at,
    )


def _moved(session: Session, status: Status, policy: Policy) -> Session:
    """The session in an open `status`, its deadlines renewed."""
    idle_at, expires_at = deadlines(status, session.last_activity_at, policy)
    return session._replace(status=status, idle_at=idle_at, expires_at=expires_at)


def _closed(session: Session, status: Status, at: datetime, reason: str | None) -> Session:
    return session._replace(
        status=status,
        closed_at=at,
        closed_by=CLOSED_BY[status],
        close_reason=reason,
        idle_at=None,
        expires_at=None,
    )


def _closed_by(event: Closing, session: Session) -> Session:
    return _closed(session, _closing_status(event), event.at, event.reason)


def _reopened(expired: Session) -> Session:
    """The session as it was before it expired, but for the deadlines: the message that proves it alive renews them."""
    status = PENDING if expired.accepted_at is None else PROGRESS
    return expired._replace(status=status, closed_at=None, closed_by=None, close_reason=None)


def _closed_part(session: Session, newest: datetime, at: datetime) -> Session:
    """The closed part of a split: the session closed at `at`, without the messages of the next session."""
    users = max(0, session.user_messages - 1)
    agents = max(0, session.agent_messages - _is_answered(session, newest))
    accepted = session.accepted_at is not None and session.accepted_at <= at
    return session._replace(
        accepted_at=session.accepted_at if accepted else None,
        accepted_by=session.accepted_by if accepted else None,
        last_activity_at=min(session.last_activity_at, at),
        last_user_message_at=min(newest, at) if users else None,
        last_agent_message_at=min(session.last_agent_message_at or at, at) if agents else None,
        user_messages=users,
        agent_messages=agents,
    )


def _next_session(session: Session, newest: datetime, policy: Policy) -> Session:
    """The next session of a split, opened by the user's newest message and the answer to it, if there is one."""
    answer = session.last_agent_message_at if _is_answered(session, newest) else None
    opened = _opened(session.number + 1, newest, policy)._replace(
        accepted_at=answer,
        accepted_by=AGENT if answer else None,
        last_activity_at=answer or newest,
        last_user_message_at=newest,
        last_agent_message_at=answer,
        user_messages=1,
        agent_messages=1 if answer else 0,
    )
    return _moved(opened, PROGRESS if answer else PENDING, policy)


def _is_answered(session: Session, newest: datetime) -> bool:
    return session.last_agent_message_at is not None and session.last_agent_message_at > newest


def _closing_status(event: Closing) -> Status:
    return event.status if isinstance(event, ManualClose) else Status.USER_CLOSED


def _later(one: datetime | None, other: datetime) -> datetime:
    return other if one is None else max(one, other)
