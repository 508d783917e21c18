"""A conversation while events are applied to it."""

from datetime import datetime

from consumer.lifecycle.model import (
    APPLIED,
    CONSUMER_SOURCE,
    Closing,
    Conversation,
    HistoryRow,
    Kind,
    Outcome,
    Session,
    Status,
)


class Draft:
    """A conversation while events are applied to it, and the rows of what they did. Never leaves the lifecycle."""

    __slots__ = ("conversation_id", "rows", "sessions", "version")

    def __init__(self, conversation: Conversation) -> None:
        self.conversation_id, self.version, sessions = conversation
        self.sessions = list(sessions)
        self.rows: list[HistoryRow] = []

    @property
    def current(self) -> Session | None:
        return self.sessions[-1] if self.sessions else None

    def session_at(self, at: datetime) -> Session | None:
        """The last session opened at or before `at`; older than all, session 1, opened then."""
        for session in reversed(self.sessions):
            if session.opened_at <= at:
                return session
        return self.sessions[0]._replace(opened_at=at) if self.sessions else None

    def record(self, event: Closing, session: Session, outcome: Outcome) -> Outcome:
        """Takes `session` as the event leaves it, with the event's own row."""
        before = self._set(session)
        row = HistoryRow(
            self.conversation_id,
            event.source,
            event.event_id,
            session.number,
            self.version,
            event.kind,
            event.at,
            outcome,
            event.requested,
            before,
            session.status,
            event.actor,
            event.reason,
        )
        self.rows.append(row)
        return outcome

    def cause(self, kind: Kind, actor: str, session: Session, at: datetime) -> None:
        """Takes `session` after a transition that the event causes besides its own effect, dated `at`."""
        before = self._set(session)
        row = HistoryRow(
            conversation_id=self.conversation_id,
            source=CONSUMER_SOURCE,
            event_id=str(self.version),
            session=session.number,
            version=self.version,
            kind=kind,
            occurred_at=at,
            outcome=APPLIED,
            requested=None,
            from_status=before,
            to_status=session.status,
            actor=actor,
            reason=None,
        )
        self.rows.append(row)

    def _set(self, session: Session) -> Status | None:
        """The next version: `session` in its place, or after all others. The status that it had before."""
        self.version += 1
        if not self.sessions or session.number > self.sessions[-1].number:
            self.sessions.append(session)
            return None
        place = -1
        while self.sessions[place].number != session.number:
            place -= 1
        before, self.sessions[place] = self.sessions[place].status, session
        return before
