"""The lifecycle, row by row of its table, and each rule beside it."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from consumer.lifecycle.model import (
    Author,
    Conversation,
    Decision,
    Event,
    HistoryRow,
    Kind,
    Outcome,
    Policy,
    Session,
    Status,
)
from consumer.lifecycle.rules import apply, deadlines, fold, reaches_back
from tests.builders import HOUR, MINUTE, SECOND, T0, close, goodbye, message, tick

POLICY = Policy()
DAY = 24 * HOUR
LONG_AFTER = T0 + 365 * DAY
MANUAL = (Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED)


def play(*events: Event, now: datetime = LONG_AFTER) -> Conversation:
    return fold(Conversation("c-1"), events, (), POLICY, now).after


def decide(before: Conversation, event: Event, now: datetime = LONG_AFTER) -> Decision:
    return apply(before, event, POLICY, now)


def current(conversation: Conversation) -> Session:
    assert conversation.current is not None
    return conversation.current


def session_of(decision: Decision) -> Session:
    return current(decision.conversation)


def shape(row: HistoryRow) -> tuple[Any, ...]:
    return row.kind, row.actor, row.from_status, row.to_status, row.occurred_at


PENDING = play(message(at=T0))
PROGRESS = play(message(at=T0), message(Author.AGENT, T0 + MINUTE))
IDLE = play(message(at=T0), message(Author.AGENT, T0 + MINUTE), tick(T0 + HOUR))
EXPIRED = play(message(at=T0), tick(T0 + 49 * HOUR))
CLOSED_AT = T0 + 10 * MINUTE
CLOSED = play(message(at=T0), close(Status.AGENT_CLOSED, CLOSED_AT))
TWO = play(message(at=T0), close(Status.AGENT_CLOSED, CLOSED_AT), message(at=T0 + HOUR))


class TestDeadlines:
    @pytest.mark.parametrize(
        ("status", "idle_after", "expires_after"),
        [
            (Status.PENDING, None, 48 * HOUR),
            (Status.PROGRESS, 15 * MINUTE, 24 * HOUR),
            (Status.IDLE_TIMEOUT, None, 24 * HOUR),
            (Status.EXPIRED, None, None),
            (Status.AGENT_CLOSED, None, None),
        ],
    )
    def test_are_a_function_of_status_and_last_activity(
        self, status: Status, idle_after: timedelta | None, expires_after: timedelta | None
    ) -> None:
        idle_at, expires_at = deadlines(status, T0, POLICY)

        assert idle_at == (T0 + idle_after if idle_after else None)
        assert expires_at == (T0 + expires_after if expires_after else None)

    def test_are_renewed_by_every_activity(self) -> None:
        session = session_of(decide(PENDING, message(at=T0 + HOUR)))

        assert session.expires_at == T0 + 49 * HOUR

    def test_are_renewed_by_acceptance_even_by_an_older_message(self) -> None:
        session = session_of(decide(PENDING, message(Author.AGENT, T0 - MINUTE)))

        assert (session.idle_at, session.expires_at) == (T0 + 15 * MINUTE, T0 + 24 * HOUR)

    def test_are_never_shortened_by_an_older_message(self) -> None:
        later = play(message(at=T0), message(at=T0 + HOUR))

        session = session_of(decide(later, message(at=T0 + MINUTE)))

        assert session.expires_at == T0 + 49 * HOUR
        assert session.last_activity_at == T0 + HOUR
        assert session.user_messages == 3

    def test_stored_ones_rule_until_renewed(self) -> None:
        shorter = Policy(pending_ttl=HOUR)

        untouched = apply(PENDING, tick(T0 + 2 * HOUR), shorter, LONG_AFTER)
        renewed = apply(PENDING, message(at=T0 + MINUTE), shorter, LONG_AFTER)

        assert untouched.outcome is Outcome.EARLY
        assert session_of(renewed).expires_at == T0 + MINUTE + HOUR


class TestNoConversation:
    def test_a_user_message_opens_it_pending(self) -> None:
        decision = decide(Conversation("c-1"), message(at=T0))

        session = session_of(decision)
        assert (session.number, session.status, session.opened_at) == (1, Status.PENDING, T0)
        assert (session.user_messages, session.last_user_message_at, session.accepted_at) == (1, T0, None)
        assert (decision.outcome, decision.conversation.version) == (Outcome.APPLIED, 1)

    @pytest.mark.parametrize("author", [Author.AGENT, Author.SUPPORT, Author.SYSTEM])
    def test_anybody_elses_message_opens_it_accepted(self, author: Author) -> None:
        session = session_of(decide(Conversation("c-1"), message(author)))

        assert (session.status, session.accepted_at, session.accepted_by) == (Status.PROGRESS, T0, author)
        assert session.agent_messages == (author is not Author.SYSTEM)

    def test_a_goodbye_opens_and_closes_it_with_one_message(self) -> None:
        decision = decide(Conversation("c-1"), goodbye(T0))

        session = session_of(decision)
        assert (session.status, session.user_messages, session.close_reason) == (Status.USER_CLOSED, 1, None)
        opening, closing = decision.rows
        assert shape(opening) == (Kind.INBOUND_MESSAGE, "user", None, Status.PENDING, T0)
        assert (opening.source, opening.event_id, opening.requested) == ("consumer", "1", None)
        assert shape(closing) == (Kind.INBOUND_MESSAGE, "user", Status.PENDING, Status.USER_CLOSED, T0)
        assert closing.requested == "close"

    def test_a_close_that_outruns_the_first_message_is_kept(self) -> None:
        decision = decide(Conversation("c-1"), close(Status.SUPPORT_CLOSED, T0, reason="spam"))

        session = session_of(decision)
        assert (session.status, session.closed_by, session.close_reason) == (Status.SUPPORT_CLOSED, "support", "spam")
        assert session.opened_at == session.last_activity_at == session.closed_at == T0
        assert [row.from_status for row in decision.rows] == [None]

    def test_a_tick_writes_nothing(self) -> None:
        decision = decide(Conversation("c-1"), tick())

        assert (decision.outcome, decision.rows) == (Outcome.UNKNOWN, ())


class TestOpenSession:
    @pytest.mark.parametrize("author", [Author.AGENT, Author.SUPPORT, Author.SYSTEM])
    def test_the_first_answer_accepts_it_once(self, author: Author) -> None:
        accepted = decide(PENDING, message(author, T0 + MINUTE)).conversation

        again = session_of(decide(accepted, message(Author.SUPPORT, T0 + 2 * MINUTE)))

        assert (again.status, again.accepted_at, again.accepted_by) == (Status.PROGRESS, T0 + MINUTE, author)

    def test_a_system_message_in_progress_renews_nothing_and_is_recorded(self) -> None:
        decision = decide(PROGRESS, message(Author.SYSTEM, T0 + 5 * MINUTE))

        assert session_of(decision) == current(PROGRESS)
        assert decision.outcome is Outcome.APPLIED
        assert decision.conversation.version == PROGRESS.version + 1
        assert not decision.rows[0].is_transition

    def test_a_system_message_leaves_an_idle_session_idle(self) -> None:
        decision = decide(IDLE, message(Author.SYSTEM, T0 + 2 * HOUR))

        assert session_of(decision) == current(IDLE)

    @pytest.mark.parametrize("author", [Author.USER, Author.AGENT, Author.SUPPORT])
    def test_a_newer_message_resumes_an_idle_session(self, author: Author) -> None:
        session = session_of(decide(IDLE, message(author, T0 + 2 * HOUR)))

        assert (session.status, session.idle_at) == (Status.PROGRESS, T0 + 2 * HOUR + 15 * MINUTE)

    def test_an_older_message_counts_but_does_not_resume(self) -> None:
        session = session_of(decide(IDLE, message(at=T0 + 30 * SECOND)))

        assert (session.status, session.user_messages) == (Status.IDLE_TIMEOUT, 2)

    @pytest.mark.parametrize("before", [PENDING, PROGRESS, IDLE])
    @pytest.mark.parametrize("status", MANUAL)
    def test_a_manual_close_closes_it(self, before: Conversation, status: Status) -> None:
        session = session_of(decide(before, close(status, T0 + 2 * HOUR, reason="done")))

        assert (session.status, session.closed_at, session.close_reason) == (status, T0 + 2 * HOUR, "done")
        assert (session.idle_at, session.expires_at) == (None, None)
        assert session.last_activity_at == current(before).last_activity_at

    @pytest.mark.parametrize("before", [PENDING, PROGRESS, IDLE])
    def test_a_goodbye_closes_it_and_counts_as_a_message(self, before: Conversation) -> None:
        session = session_of(decide(before, goodbye(T0 + 2 * HOUR)))

        assert (session.status, session.closed_by) == (Status.USER_CLOSED, "user")
        assert session.user_messages == current(before).user_messages + 1
        assert session.last_user_message_at == session.last_activity_at == T0 + 2 * HOUR

    def test_an_intent_to_close_of_others_than_the_user_is_ignored(self) -> None:
        decision = decide(PENDING, message(Author.AGENT, T0 + MINUTE, intent="close"))

        assert (session_of(decision).status, decision.rows[0].requested) == (Status.PROGRESS, "agent")

    def test_an_older_event_lowers_the_opening_of_the_first_session(self) -> None:
        decision = decide(PENDING, message(Author.SYSTEM, T0 - HOUR))

        assert session_of(decision).opened_at == T0 - HOUR


class TestSettling:
    def test_a_message_after_both_deadlines_finds_the_session_idled_then_expired(self) -> None:
        decision = decide(PROGRESS, message(at=T0 + 3 * DAY))

        idled, expired, opened = decision.rows
        active_at = T0 + MINUTE
        assert shape(idled) == (Kind.TICK, "timer", Status.PROGRESS, Status.IDLE_TIMEOUT, active_at + 15 * MINUTE)
        assert shape(expired) == (Kind.TICK, "timer", Status.IDLE_TIMEOUT, Status.EXPIRED, active_at + DAY)
        assert (opened.session, opened.from_status, opened.to_status) == (2, None, Status.PENDING)
        assert [row.event_id for row in (idled, expired)] == ["3", "4"]

    def test_a_deadline_that_equals_the_time_has_not_passed(self) -> None:
        decision = decide(PENDING, message(at=T0 + 48 * HOUR))

        assert session_of(decision).status is Status.PENDING

    @pytest.mark.parametrize(("before", "reason"), [(PENDING, "pending_ttl"), (PROGRESS, "progress_ttl")])
    def test_the_timer_says_which_deadline_it_was(self, before: Conversation, reason: str) -> None:
        session = session_of(decide(before, tick(T0 + 3 * DAY)))

        assert (session.status, session.closed_by, session.close_reason) == (Status.EXPIRED, "timer", reason)

    def test_a_tick_leaves_no_row_of_its_own(self) -> None:
        decision = decide(PENDING, tick(T0 + 3 * DAY))

        assert decision.outcome is Outcome.APPLIED
        assert [row.source for row in decision.rows] == ["consumer"]

    def test_a_tick_from_the_future_settles_no_further_than_now(self) -> None:
        decision = decide(PENDING, tick(T0 + 3 * DAY), now=T0 + HOUR)

        assert decision.outcome is Outcome.EARLY

    @pytest.mark.parametrize(("before", "outcome"), [(PENDING, Outcome.EARLY), (CLOSED, Outcome.NOOP)])
    def test_a_tick_with_nothing_due_writes_nothing(self, before: Conversation, outcome: Outcome) -> None:
        decision = decide(before, tick(T0 + MINUTE))

        assert (decision.outcome, decision.rows, decision.conversation) == (outcome, (), before)


class TestClosedSession:
    def test_a_users_message_opens_the_next_session(self) -> None:
        session = session_of(decide(CLOSED, message(at=CLOSED_AT + SECOND)))

        assert (session.number, session.status, session.opened_at) == (2, Status.PENDING, CLOSED_AT + SECOND)

    def test_a_users_message_at_the_closing_is_late(self) -> None:
        assert decide(CLOSED, message(at=CLOSED_AT)).outcome is Outcome.LATE

    @pytest.mark.parametrize("author", [Author.AGENT, Author.SUPPORT])
    def test_an_agents_follow_up_within_ten_minutes_is_late(self, author: Author) -> None:
        follow_up = decide(CLOSED, message(author, CLOSED_AT + 10 * MINUTE))
        new = decide(CLOSED, message(author, CLOSED_AT + 10 * MINUTE + SECOND))

        assert (follow_up.outcome, session_of(follow_up)) == (Outcome.LATE, current(CLOSED))
        assert (session_of(new).number, session_of(new).status) == (2, Status.PROGRESS)

    def test_an_agent_needs_no_grace_after_an_expiry(self) -> None:
        session = session_of(decide(EXPIRED, message(Author.AGENT, T0 + 48 * HOUR + SECOND)))

        assert (session.number, session.status) == (2, Status.PROGRESS)

    @pytest.mark.parametrize("before", [CLOSED, EXPIRED])
    def test_a_system_message_is_late(self, before: Conversation) -> None:
        decision = decide(before, message(Author.SYSTEM, T0 + 30 * DAY))

        assert (decision.outcome, session_of(decision)) == (Outcome.LATE, current(before))

    def test_a_late_row_names_the_unchanged_status_twice(self) -> None:
        (row,) = decide(CLOSED, message(at=T0 + MINUTE)).rows

        assert (row.from_status, row.to_status, row.is_transition) == (Status.AGENT_CLOSED, Status.AGENT_CLOSED, False)

    def test_an_event_before_all_sessions_lowers_the_opening_even_when_late(self) -> None:
        decision = decide(CLOSED, message(at=T0 - HOUR))

        assert (decision.outcome, session_of(decision).opened_at) == (Outcome.LATE, T0 - HOUR)


class TestClosingPriority:
    @pytest.mark.parametrize("first", [*MANUAL, Status.EXPIRED])
    @pytest.mark.parametrize("second", MANUAL)
    def test_only_a_strictly_higher_rank_replaces(self, first: Status, second: Status) -> None:
        before = EXPIRED if first is Status.EXPIRED else play(message(at=T0), close(first, CLOSED_AT))
        at = (current(before).closed_at or T0) + MINUTE

        decision = decide(before, close(second, at, reason="second"))

        session = session_of(decision)
        order = [*MANUAL, Status.EXPIRED]
        if order.index(second) < order.index(first):
            assert (decision.outcome, session.status) == (Outcome.RECLASSIFIED, second)
            assert (session.reclassified_at, session.close_reason) == (at, "second")
        else:
            assert (decision.outcome, session) == (Outcome.OUTRANKED, current(before))

    def test_the_window_is_inclusive(self) -> None:
        inside = decide(CLOSED, close(Status.FAILED, CLOSED_AT + DAY))
        outside = decide(CLOSED, close(Status.FAILED, CLOSED_AT + DAY + SECOND))

        assert (inside.outcome, outside.outcome) == (Outcome.RECLASSIFIED, Outcome.LATE)
        assert session_of(outside) == current(CLOSED)

    def test_rank_is_judged_before_lateness(self) -> None:
        assert decide(CLOSED, close(Status.AGENT_CLOSED, CLOSED_AT + 30 * DAY)).outcome is Outcome.OUTRANKED

    def test_an_outranked_close_still_dates_the_closing_earlier(self) -> None:
        decision = decide(CLOSED, close(Status.AGENT_CLOSED, T0 + MINUTE))

        assert (decision.outcome, session_of(decision).closed_at) == (Outcome.OUTRANKED, T0 + MINUTE)

    def test_a_closing_is_never_dated_before_the_users_last_message(self) -> None:
        before = play(message(at=T0), message(at=T0 + MINUTE), close(Status.AGENT_CLOSED, CLOSED_AT))

        session = session_of(decide(before, close(Status.FAILED, T0 + SECOND)))

        assert session.closed_at == T0 + MINUTE

    @pytest.mark.parametrize(("after", "outcome"), [(5 * SECOND, Outcome.RECLASSIFIED), (6 * SECOND, Outcome.LATE)])
    def test_a_goodbye_competes_for_five_seconds(self, after: timedelta, outcome: Outcome) -> None:
        decision = decide(CLOSED, goodbye(CLOSED_AT + after))

        assert decision.outcome is outcome
        assert session_of(decision).user_messages == 1

    @pytest.mark.parametrize(
        ("status", "closed_by"),
        list(zip(MANUAL, ("system", "user", "support", "agent"), strict=True)),
    )
    def test_who_closed_follows_from_the_status(self, status: Status, closed_by: str) -> None:
        assert session_of(decide(EXPIRED, close(status, T0 + 48 * HOUR))).closed_by == closed_by


class TestReinstatement:
    JUST_EXPIRED = T0 + 49 * HOUR

    @pytest.mark.parametrize(
        ("author", "status"),
        [(Author.USER, Status.PENDING), (Author.AGENT, Status.PROGRESS), (Author.SUPPORT, Status.PROGRESS)],
    )
    def test_evidence_of_activity_reopens_an_expired_session(self, author: Author, status: Status) -> None:
        decision = decide(EXPIRED, message(author, T0 + 47 * HOUR), now=self.JUST_EXPIRED)

        session = session_of(decision)
        assert (decision.outcome, session.number, session.status) == (Outcome.REINSTATED, 1, status)
        assert (session.closed_at, session.closed_by, session.close_reason) == (None, None, None)
        assert (session.idle_at, session.expires_at) == deadlines(status, T0 + 47 * HOUR, POLICY)

    def test_an_answered_session_comes_back_in_progress(self) -> None:
        before = play(message(at=T0), message(Author.AGENT, T0), tick(T0 + 25 * HOUR))

        decision = decide(before, message(at=T0 + 23 * HOUR), now=T0 + 25 * HOUR)

        assert session_of(decision).status is Status.PROGRESS

    @pytest.mark.parametrize(
        ("author", "at", "now"),
        [
            (Author.SYSTEM, T0 + HOUR, JUST_EXPIRED),
            (Author.USER, T0, JUST_EXPIRED),
            (Author.USER, T0 + HOUR, T0 + 72 * HOUR),
        ],
        ids=["a system message", "not after the last activity", "expired too long ago"],
    )
    def test_without_evidence_the_message_is_late(self, author: Author, at: datetime, now: datetime) -> None:
        decision = decide(EXPIRED, message(author, at), now=now)

        assert (decision.outcome, session_of(decision)) == (Outcome.LATE, current(EXPIRED))

    def test_a_humans_closing_does_not_yield(self) -> None:
        assert decide(CLOSED, message(at=T0 + MINUTE), now=T0 + HOUR).outcome is Outcome.LATE


class TestSplit:
    """Race 6: the user wrote after the close, but was read first."""

    def test_the_newer_message_ends_up_in_an_open_session(self) -> None:
        before = play(message(at=T0), message(at=T0 + 10 * MINUTE))

        decision = decide(before, close(Status.AGENT_CLOSED, T0 + 5 * MINUTE))

        closed, opened = decision.conversation.sessions
        assert (closed.status, closed.closed_at, closed.user_messages) == (Status.AGENT_CLOSED, T0 + 5 * MINUTE, 1)
        assert closed.last_user_message_at == closed.last_activity_at == T0 + 5 * MINUTE
        assert (opened.number, opened.status, opened.opened_at) == (2, Status.PENDING, T0 + 10 * MINUTE)
        assert (opened.user_messages, opened.last_activity_at) == (1, T0 + 10 * MINUTE)
        closing, opening = decision.rows
        assert closing.outcome is Outcome.APPLIED
        assert shape(opening) == (Kind.INBOUND_MESSAGE, "user", None, Status.PENDING, T0 + 10 * MINUTE)

    def test_an_answer_to_the_newer_message_goes_along(self) -> None:
        before = play(message(at=T0 + 10 * MINUTE), message(Author.SUPPORT, T0 + 11 * MINUTE))

        closed, opened = decide(before, close(at=T0 + 5 * MINUTE)).conversation.sessions

        assert (opened.status, opened.accepted_at, opened.accepted_by) == (
            Status.PROGRESS,
            T0 + 11 * MINUTE,
            Author.AGENT,
        )
        assert (opened.agent_messages, opened.last_activity_at) == (1, T0 + 11 * MINUTE)
        assert (closed.user_messages, closed.last_user_message_at) == (0, None)
        assert (closed.agent_messages, closed.last_agent_message_at, closed.accepted_at) == (0, None, None)

    def test_a_goodbye_that_was_outrun_stays_in_the_session_it_closes(self) -> None:
        before = play(message(at=T0), message(at=T0 + 10 * MINUTE))

        closed, opened = decide(before, goodbye(T0 + 5 * MINUTE)).conversation.sessions

        assert (closed.status, closed.user_messages, closed.last_user_message_at) == (
            Status.USER_CLOSED,
            2,
            T0 + 5 * MINUTE,
        )
        assert opened.user_messages == 1

    @pytest.mark.parametrize("answered", [False, True])
    def test_both_orders_end_in_the_same_statuses(self, answered: bool) -> None:
        opening = [message(at=T0)] + ([message(Author.AGENT, T0 + MINUTE)] if answered else [])
        closing, newer = close(at=T0 + 5 * MINUTE), message(at=T0 + 10 * MINUTE)

        one = play(*opening, closing, newer)
        other = play(*opening, newer, closing)

        assert [s.status for s in one.sessions] == [s.status for s in other.sessions]
        assert current(one).status is Status.PENDING


class TestOlderSessions:
    TWO = play(message(at=T0), close(Status.AGENT_CLOSED, CLOSED_AT), message(at=T0 + HOUR))

    def test_a_message_for_an_older_session_is_late(self) -> None:
        decision = decide(self.TWO, message(at=T0 + MINUTE))

        assert (decision.outcome, decision.rows[0].session) == (Outcome.LATE, 1)
        assert decision.conversation.sessions == self.TWO.sessions

    def test_a_close_for_an_older_session_reclassifies_that_one(self) -> None:
        decision = decide(self.TWO, close(Status.FAILED, CLOSED_AT + MINUTE))

        first, second = decision.conversation.sessions
        assert (first.status, second) == (Status.FAILED, self.TWO.sessions[1])

    def test_an_event_older_than_all_lowers_the_first_sessions_opening(self) -> None:
        decision = decide(self.TWO, close(Status.AGENT_CLOSED, T0 - HOUR))

        first = decision.conversation.sessions[0]
        assert (decision.outcome, first.opened_at, first.closed_at) == (Outcome.OUTRANKED, T0 - HOUR, T0)


class TestFold:
    def test_a_duplicate_touches_nothing_whatever_its_time(self) -> None:
        first = message(at=T0, event_id="same")
        change = fold(Conversation("c-1"), [first, message(at=T0 + HOUR, event_id="same")], (), POLICY, LONG_AFTER)

        assert change.outcomes == (Outcome.APPLIED, Outcome.DUPLICATE)
        assert current(change.after).expires_at == T0 + 48 * HOUR

    def test_a_known_event_touches_nothing(self) -> None:
        change = fold(PENDING, [message(event_id="known")], {("whatsapp:1", "known")}, POLICY, LONG_AFTER)

        assert (change.outcomes, change.rows, change.after) == ((Outcome.DUPLICATE,), (), PENDING)

    def test_the_same_id_of_another_source_is_another_event(self) -> None:
        events = [message(event_id="1", source="a"), message(event_id="1", source="b")]

        assert current(play(*events)).user_messages == 2

    def test_a_time_ahead_of_the_databases_clock_is_clamped_and_counted(self) -> None:
        change = fold(Conversation("c-1"), [message(at=T0 + HOUR)], (), POLICY, T0)

        assert current(change.after).opened_at == T0 + 5 * SECOND
        assert change.rows[0].occurred_at == T0 + 5 * SECOND
        assert change.clamped == 1

    def test_versions_count_the_rows(self) -> None:
        change = fold(PENDING, [message(at=T0 + 3 * DAY), goodbye(T0 + 4 * DAY)], (), POLICY, LONG_AFTER)

        assert [row.version for row in change.rows] == [2, 3, 4]
        assert change.after.version == 4

    def test_only_transitions_are_published(self) -> None:
        change = fold(PENDING, [message(at=T0 + MINUTE), message(Author.AGENT, T0 + MINUTE)], (), POLICY, LONG_AFTER)

        assert [row.is_transition for row in change.rows] == [False, True]


def test_a_message_at_the_moment_a_session_opened_belongs_to_it() -> None:
    decision = decide(TWO, message(at=T0 + HOUR))

    assert (decision.outcome, decision.rows[0].session) == (Outcome.APPLIED, 2)


def test_an_events_own_row_carries_the_events_fields() -> None:
    event = close(Status.SUPPORT_CLOSED, T0 + MINUTE, source="desk", actor="support-9", reason="spam")

    (row,) = decide(PENDING, event).rows

    assert (row.conversation_id, row.source, row.event_id) == ("c-1", "desk", event.event_id)
    assert (row.actor, row.reason) == ("support-9", "spam")


def test_a_caused_row_names_its_conversation_session_and_outcome() -> None:
    idled, expired, _ = decide(PROGRESS, message(at=T0 + 3 * DAY)).rows

    for row in (idled, expired):
        assert (row.conversation_id, row.session, row.outcome) == ("c-1", 1, Outcome.APPLIED)


def test_a_close_that_splits_is_applied() -> None:
    before = play(message(at=T0), message(at=T0 + 10 * MINUTE))

    assert decide(before, close(at=T0 + 5 * MINUTE)).outcome is Outcome.APPLIED


def test_a_message_that_opens_the_next_session_is_applied() -> None:
    decision = decide(CLOSED, message(at=CLOSED_AT + SECOND))

    assert decision.outcome is decision.rows[0].outcome is Outcome.APPLIED


def test_what_follows_a_duplicate_is_still_applied() -> None:
    first, other = message(at=T0), message(at=T0 + MINUTE)

    change = fold(Conversation("c-1"), [first, first, other], (), POLICY, LONG_AFTER)

    assert change.outcomes == (Outcome.APPLIED, Outcome.DUPLICATE, Outcome.APPLIED)


def test_each_event_beyond_the_tolerance_is_counted_and_none_within_it() -> None:
    ahead = [message(at=T0 + after) for after in (0 * SECOND, 5 * SECOND, 6 * SECOND, HOUR)]

    assert fold(Conversation("c-1"), ahead, (), POLICY, T0).clamped == 2
    assert fold(Conversation("c-1"), ahead[2:] + ahead[:1], (), POLICY, T0).clamped == 2


def test_a_message_as_old_as_the_last_activity_does_not_resume_an_idle_session() -> None:
    session = session_of(decide(IDLE, message(at=current(IDLE).last_activity_at)))

    assert session.status is Status.IDLE_TIMEOUT


def test_an_agents_older_message_does_not_move_the_last_one_back() -> None:
    before = play(message(at=T0), message(Author.AGENT, T0 + 2 * MINUTE))

    session = session_of(decide(before, message(Author.AGENT, T0 + MINUTE)))

    assert (session.last_agent_message_at, session.agent_messages) == (T0 + 2 * MINUTE, 2)


def test_stored_deadlines_survive_an_older_message_under_another_policy() -> None:
    before = play(message(at=T0), message(at=T0 + HOUR))

    decision = apply(before, message(at=T0 + MINUTE), Policy(pending_ttl=HOUR), LONG_AFTER)

    assert session_of(decision).expires_at == T0 + 49 * HOUR


@pytest.mark.parametrize("close_after", [MINUTE, 5 * MINUTE], ids=["at the acceptance", "later"])
def test_what_was_answered_before_the_close_stays_accepted(close_after: Any) -> None:
    before = play(message(at=T0), message(Author.SUPPORT, T0 + MINUTE), message(at=T0 + 10 * MINUTE))

    closed, opened = decide(before, close(at=T0 + close_after)).conversation.sessions

    assert (closed.accepted_at, closed.accepted_by) == (T0 + MINUTE, Author.SUPPORT)
    assert (closed.agent_messages, closed.last_agent_message_at) == (1, T0 + MINUTE)
    assert (opened.status, opened.last_user_message_at) == (Status.PENDING, T0 + 10 * MINUTE)
    assert (opened.accepted_at, opened.accepted_by) == (None, None)
    assert (opened.agent_messages, opened.last_agent_message_at) == (0, None)


def test_the_answer_taken_along_leaves_nothing_of_itself_behind() -> None:
    before = play(message(at=T0 + 10 * MINUTE), message(Author.SUPPORT, T0 + 11 * MINUTE))

    closed, opened = decide(before, close(at=T0 + 5 * MINUTE)).conversation.sessions

    assert (closed.accepted_at, closed.accepted_by) == (None, None)
    assert (opened.last_user_message_at, opened.last_agent_message_at) == (T0 + 10 * MINUTE, T0 + 11 * MINUTE)


@pytest.mark.parametrize(
    ("conversation", "at", "now", "reaches"),
    [
        (PENDING, T0 - MINUTE, T0, False),
        (PENDING, T0, T0 - MINUTE, False),
        (TWO, T0 + HOUR, T0 + HOUR, False),
        (TWO, T0 + HOUR - SECOND, T0 + DAY, True),
        (TWO, T0 + DAY, T0 + HOUR - SECOND, True),
    ],
    ids=["no older one", "no older one, clock ran back", "as it opened", "event before it", "clock ran back"],
)
def test_older_sessions_are_taken_where_an_event_may_belong_to_one(
    conversation: Conversation, at: datetime, now: datetime, reaches: bool
) -> None:
    assert reaches_back(conversation, [message(at=T0 + DAY), message(at=at)], now) is reaches
