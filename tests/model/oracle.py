"""The rules of the lifecycle a second time, written from the specification alone.

`decide` means what `consumer.conversation.apply` means, so that a mistake has to be made twice to go unseen. It looks
different on purpose: drafts of the sessions are changed in place, step by step, as the specification tells it. All
sessions of the conversation must be present.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    Author,
    Closing,
    Conversation,
    Decision,
    Event,
    HistoryRow,
    Intent,
    Kind,
    ManualClose,
    Message,
    Outcome,
    Policy,
    Session,
    Status,
    Tick,
)

OPEN = [Status.PENDING, Status.PROGRESS, Status.IDLE_TIMEOUT]
PRIORITY = [Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED, Status.EXPIRED]
CLOSERS = dict(zip(PRIORITY, ["system", "user", "support", "agent", "timer"], strict=True))


def decide(conversation: Conversation, event: Event, policy: Policy, now: datetime) -> Decision:
    draft = Draft(conversation, policy, now)
    event = event._replace(at=min(event.at, now + policy.clock_tolerance))
    if isinstance(event, Tick):
        outcome = tick(draft, event)
    elif isinstance(event, ManualClose) or is_goodbye(event):
        outcome = closing(draft, event)
    else:
        outcome = message(draft, event)
    return Decision(draft.finished(), tuple(draft.rows), outcome)


@dataclass
class SessionDraft:
    """A session that may be changed."""

    number: int
    status: Status
    opened_at: datetime
    last_activity_at: datetime
    accepted_at: datetime | None = None
    accepted_by: Author | None = None
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

    def renew(self, policy: Policy) -> None:
        ttl = policy.pending_ttl if self.status is Status.PENDING else policy.progress_ttl
        self.expires_at = self.last_activity_at + ttl
        self.idle_at = self.last_activity_at + policy.idle_after if self.status is Status.PROGRESS else None

    def close(self, at: datetime, status: Status, reason: str | None) -> None:
        self.closed_at, self.status, self.closed_by, self.close_reason = at, status, CLOSERS[status], reason
        self.idle_at = self.expires_at = None


class Draft:
    """The conversation while it is being changed: its sessions, and the rows written so far."""

    def __init__(self, conversation: Conversation, policy: Policy, now: datetime) -> None:
        self.id, self.version, self.policy, self.now = conversation.id, conversation.version, policy, now
        names = list(Session._fields)
        self.sessions = [SessionDraft(**{name: getattr(one, name) for name in names}) for one in conversation.sessions]
        self.rows: list[HistoryRow] = []

    def finished(self) -> Conversation:
        return Conversation(self.id, self.version, tuple(Session(**vars(session)) for session in self.sessions))

    def session_of(self, at: datetime) -> SessionDraft:
        for session in reversed(self.sessions):
            if session.opened_at <= at:
                return session
        self.sessions[0].opened_at = at
        return self.sessions[0]

    def append(self, status: Status, at: datetime) -> SessionDraft:
        self.sessions.append(SessionDraft(len(self.sessions) + 1, status, opened_at=at, last_activity_at=at))
        return self.sessions[-1]

    def write(self, event: Closing, session: SessionDraft, before: Status | None, how: Outcome) -> Outcome:
        """The event's own row."""
        fields: dict[str, Any] = {"source": event.source, "event_id": event.event_id, "outcome": how}
        if isinstance(event, ManualClose):
            fields |= {"requested": event.status, "actor": event.actor, "reason": event.reason}
        else:
            fields |= {
                "requested": "close" if is_goodbye(event) else event.author,
                "actor": event.author,
                "reason": None,
            }
        self._add(event.kind, event.at, session, before, **fields)
        return how

    def write_caused(self, kind: Kind, at: datetime, actor: str, session: SessionDraft, before: Status | None) -> None:
        """The row of a transition that the event causes besides its own effect."""
        fields: dict[str, Any] = {"source": CONSUMER_SOURCE, "event_id": str(self.version + 1), "actor": actor}
        self._add(kind, at, session, before, outcome=Outcome.APPLIED, requested=None, reason=None, **fields)

    def _add(self, kind: Kind, at: datetime, session: SessionDraft, before: Status | None, **fields: Any) -> None:
        self.version += 1
        fields |= {"conversation_id": self.id, "session": session.number, "version": self.version}
        self.rows.append(HistoryRow(kind=kind, occurred_at=at, from_status=before, to_status=session.status, **fields))


def tick(draft: Draft, event: Tick) -> Outcome:
    if not draft.sessions:
        return Outcome.UNKNOWN
    if draft.sessions[-1].status not in OPEN:
        return Outcome.NOOP
    settle(draft, min(event.at, draft.now))
    return Outcome.APPLIED if draft.rows else Outcome.EARLY


def settle(draft: Draft, until: datetime) -> None:
    """Each deadline before `until` takes effect, in order."""
    session = draft.sessions[-1]
    if (at := session.idle_at) and at < until and session.expires_at and at <= session.expires_at:
        session.status = Status.IDLE_TIMEOUT
        session.renew(draft.policy)
        draft.write_caused(Kind.TICK, at, "timer", session, Status.PROGRESS)
    if (at := session.expires_at) and at < until:
        before = session.status
        session.close(at, Status.EXPIRED, "pending_ttl" if before is Status.PENDING else "progress_ttl")
        draft.write_caused(Kind.TICK, at, "timer", session, before)


def message(draft: Draft, event: Message) -> Outcome:
    """Any message but a goodbye."""
    if not draft.sessions:
        return draft.write(event, opened_by(event, draft), None, Outcome.APPLIED)
    settle(draft, event.at)
    session = draft.session_of(event.at)
    before = session.status
    if before in OPEN:
        receive(session, event, draft.policy)
        return draft.write(event, session, before, Outcome.APPLIED)
    if session is not draft.sessions[-1] or event.author is Author.SYSTEM:
        return draft.write(event, session, before, Outcome.LATE)
    if opens_the_next(session, event, draft.policy):
        return draft.write(event, opened_by(event, draft), None, Outcome.APPLIED)
    if proves_alive(session, event, draft):
        session.status = Status.PROGRESS if session.accepted_at else Status.PENDING
        session.closed_at = session.closed_by = session.close_reason = None
        receive(session, event, draft.policy)
        return draft.write(event, session, before, Outcome.REINSTATED)
    return draft.write(event, session, before, Outcome.LATE)


def opened_by(event: Message, draft: Draft) -> SessionDraft:
    session = draft.append(Status.PENDING, event.at)
    session.renew(draft.policy)
    receive(session, event, draft.policy)
    return session


def receive(session: SessionDraft, event: Message, policy: Policy) -> None:
    """The open session takes the message in."""
    is_newer = event.at > session.last_activity_at
    accepts = session.status is Status.PENDING and event.author is not Author.USER
    if event.author is Author.SYSTEM and not accepts:
        return
    session.last_activity_at = max(session.last_activity_at, event.at)
    if event.author is Author.USER:
        session.user_messages += 1
        session.last_user_message_at = max(session.last_user_message_at or event.at, event.at)
    elif event.author is not Author.SYSTEM:
        session.agent_messages += 1
        session.last_agent_message_at = max(session.last_agent_message_at or event.at, event.at)
    if accepts:
        session.accepted_at, session.accepted_by = event.at, event.author
    if accepts or (is_newer and session.status is Status.IDLE_TIMEOUT):
        session.status = Status.PROGRESS
    if accepts or is_newer:
        session.renew(policy)


def opens_the_next(closed: SessionDraft, event: Message, policy: Policy) -> bool:
    assert closed.closed_at
    is_follow_up = event.author is not Author.USER and closed.status is not Status.EXPIRED
    return event.at > closed.closed_at + (policy.follow_up_grace if is_follow_up else timedelta(0))


def proves_alive(closed: SessionDraft, event: Message, draft: Draft) -> bool:
    assert closed.closed_at
    is_recent = draft.now - closed.closed_at < draft.policy.reclassification_window
    return closed.status is Status.EXPIRED and event.at > closed.last_activity_at and is_recent


def closing(draft: Draft, event: Closing) -> Outcome:
    """A manual close or a goodbye."""
    if not draft.sessions and isinstance(event, ManualClose):
        session = draft.append(event.status, event.at)
        session.close(event.at, *asked_for(event))
        return draft.write(event, session, None, Outcome.APPLIED)
    if not draft.sessions:
        draft.write_caused(Kind.INBOUND_MESSAGE, event.at, "user", draft.append(Status.PENDING, event.at), None)
    settle(draft, event.at)
    session = draft.session_of(event.at)
    before = session.status
    if before not in OPEN:
        return draft.write(event, session, before, compete(session, event, draft.policy))
    if isinstance(event, Message):
        receive(session, event, draft.policy)
    session.close(event.at, *asked_for(event))
    draft.write(event, session, before, Outcome.APPLIED)
    if session.last_user_message_at and session.last_user_message_at > event.at:
        split(draft, session, event.at, session.last_user_message_at)
    return Outcome.APPLIED


def compete(closed: SessionDraft, event: Closing, policy: Policy) -> Outcome:
    """The priority rule."""
    assert closed.closed_at
    if isinstance(event, Message) and event.at > closed.closed_at + policy.goodbye_grace:
        return Outcome.LATE
    outcome = Outcome.OUTRANKED
    status, reason = asked_for(event)
    if PRIORITY.index(status) < PRIORITY.index(closed.status):
        if event.at > closed.closed_at + policy.reclassification_window:
            return Outcome.LATE
        outcome = Outcome.RECLASSIFIED
        closed.close(closed.closed_at, status, reason)
        closed.reclassified_at = event.at
    earliest = max(closed.opened_at, closed.last_user_message_at or closed.opened_at)
    closed.closed_at = max(earliest, min(closed.closed_at, event.at))
    return outcome


def split(draft: Draft, closed: SessionDraft, at: datetime, asked_at: datetime) -> None:
    """The user's message at `asked_at`, after the close at `at`, moves to a session of its own with a later answer."""
    answered_at = closed.last_agent_message_at
    following = draft.append(Status.PENDING, asked_at)
    following.user_messages, following.last_user_message_at = 1, asked_at
    closed.user_messages = max(0, closed.user_messages - 1)
    if answered_at and answered_at > asked_at:
        following.status, following.last_activity_at = Status.PROGRESS, answered_at
        following.accepted_at, following.accepted_by = answered_at, Author.AGENT
        following.agent_messages, following.last_agent_message_at = 1, answered_at
        closed.agent_messages = max(0, closed.agent_messages - 1)
    following.renew(draft.policy)
    draft.write_caused(Kind.INBOUND_MESSAGE, asked_at, "user", following, None)

    closed.last_activity_at = at
    closed.last_user_message_at = at if closed.user_messages else None
    closed.last_agent_message_at = min(answered_at, at) if answered_at and closed.agent_messages else None
    if closed.accepted_at and closed.accepted_at > at:
        closed.accepted_at = closed.accepted_by = None


def is_goodbye(event: Message) -> bool:
    return event.author is Author.USER and event.intent is Intent.CLOSE


def asked_for(event: Closing) -> tuple[Status, str | None]:
    return (event.status, event.reason) if isinstance(event, ManualClose) else (Status.USER_CLOSED, None)
