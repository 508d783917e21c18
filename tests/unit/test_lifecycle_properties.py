"""What holds of the lifecycle for any events in any order."""

from datetime import datetime, timedelta
from itertools import pairwise, permutations
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from consumer.history.replay import replay
from consumer.lifecycle.model import (
    RANK,
    Author,
    Conversation,
    Event,
    HistoryRow,
    Intent,
    ManualClose,
    Message,
    Outcome,
    Policy,
    Status,
    Tick,
)
from consumer.lifecycle.rules import apply, deadlines, fold
from tests.builders import HOUR, MINUTE, SECOND, T0, close, message, tick
from tests.fakes import needed

POLICY = Policy()
MANUAL = [Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED]
# Steps that land on, just before and just after every window and deadline.
EDGES = [0 * SECOND, 5 * SECOND, 10 * MINUTE, 15 * MINUTE, 24 * HOUR, 48 * HOUR]
steps = st.builds(
    lambda edge, nudge: abs(edge + nudge),
    st.sampled_from(EDGES),
    st.sampled_from([0 * SECOND, SECOND, -SECOND, timedelta(microseconds=1), MINUTE, HOUR]),
)
times = st.lists(steps, min_size=1, max_size=3).map(lambda some: T0 + sum(some, timedelta()))
authors = st.sampled_from(list(Author))
messages = st.builds(message, authors, times, intent=st.sampled_from([None, None, None, Intent.CLOSE]))
closes = st.builds(close, st.sampled_from(MANUAL), times)
ticks = st.builds(tick, times)
events = st.one_of(messages, messages, closes, ticks)
histories = st.lists(events, max_size=12)


def decisions(some: list[Event], now: datetime | None = None) -> list[tuple[Conversation, list[HistoryRow]]]:
    """The conversation after each event with the rows that made it, decided at the event's own time or at `now`."""
    conversation, steps_taken = Conversation("c-1"), []
    for event in some:
        decision = apply(conversation, event, POLICY, now or event.at)
        conversation = decision.conversation
        steps_taken.append((conversation, list(decision.rows)))
    return steps_taken


@given(histories)
def test_the_closing_rank_never_worsens_except_by_reinstatement(some: list[Event]) -> None:
    before = Conversation("c-1")
    for after, rows in decisions(some):
        reinstated = any(row.outcome is Outcome.REINSTATED for row in rows)
        for session in before.sessions:
            status = next(later.status for later in after.sessions if later.number == session.number)
            if not session.status.is_open and not reinstated:
                assert RANK[status] <= RANK[session.status]
        before = after


@given(st.sampled_from([Author.USER, Author.AGENT]), st.data())
def test_manual_closes_end_in_the_same_status_in_any_order(author: Author, data: st.DataObject) -> None:
    start = T0 + data.draw(st.sampled_from([SECOND, HOUR, 23 * HOUR, 47 * HOUR, 72 * HOUR]))
    offsets = st.timedeltas(timedelta(0), POLICY.reclassification_window)
    some = data.draw(
        st.lists(st.builds(lambda s, o: close(s, start + o), st.sampled_from(MANUAL), offsets), min_size=2, max_size=4)
    )

    ends = {
        fold(Conversation("c-1"), [message(author, T0), *order], (), POLICY, start + 30 * HOUR)
        .after.sessions[-1]
        .status
        for order in permutations(some)
    }

    assert len(ends) == 1


@given(st.lists(st.tuples(steps, st.one_of(messages, closes)), max_size=8), st.lists(times, max_size=6))
def test_on_time_ordered_input_ticks_change_nothing(
    spaced: list[tuple[timedelta, Event]], tick_times: list[datetime]
) -> None:
    at, ordered = T0, []
    for step, event in spaced:
        at += step
        ordered.append(_dated(event, at))
    end = tick(at=max([at, *tick_times]) + 100 * HOUR)
    with_ticks = sorted([*ordered, *(tick(at) for at in tick_times)], key=lambda event: event.at)

    plain, ticked = decisions([*ordered, end]), decisions([*with_ticks, end])

    assert ticked[-1][0] == plain[-1][0]
    assert [row for _, rows in ticked for row in rows] == [row for _, rows in plain for row in rows]


@given(histories)
def test_deadlines_always_follow_from_status_and_last_activity(some: list[Event]) -> None:
    for conversation, _ in decisions(some):
        for session in conversation.sessions:
            assert (session.idle_at, session.expires_at) == deadlines(session.status, session.last_activity_at, POLICY)


@given(histories, st.booleans())
def test_sessions_never_overlap_and_only_the_last_is_open(some: list[Event], much_later: bool) -> None:
    for conversation, _ in decisions(some, T0 + 1000 * HOUR if much_later else None):
        assert [session.number for session in conversation.sessions] == list(range(1, len(conversation.sessions) + 1))
        for session, following in pairwise(conversation.sessions):
            assert session.closed_at is not None
            assert session.opened_at <= session.closed_at <= following.opened_at


@given(histories)
def test_each_row_is_one_version_and_each_transition_changes_something(some: list[Event]) -> None:
    version = 0
    for conversation, rows in decisions(some):
        for row in rows:
            version += 1
            assert row.version == version
            assert row.is_transition or row.source != "consumer"
        assert conversation.version == version


@given(histories, st.booleans())
def test_the_history_alone_folds_to_the_rows(some: list[Event], much_later: bool) -> None:
    now = T0 + 1000 * HOUR if much_later else None
    steps_taken = decisions(some, now)
    history = [(row, now or event.at) for event, (_, rows) in zip(some, steps_taken, strict=True) for row in rows]

    assert replay("c-1", history, POLICY) == (steps_taken[-1][0] if steps_taken else Conversation("c-1"))


within_a_session = st.timedeltas(timedelta(microseconds=1), 7 * MINUTE)
people = st.sampled_from([Author.USER, Author.AGENT, Author.SUPPORT])


@given(
    st.lists(st.tuples(people, within_a_session), max_size=5),
    st.lists(st.tuples(st.sampled_from([Author.AGENT, Author.SUPPORT]), within_a_session), max_size=2),
    st.sampled_from(MANUAL),
    within_a_session,
    within_a_session,
    st.randoms(use_true_random=False),
)
def test_a_close_and_a_newer_message_end_alike_in_both_orders(
    before: list[tuple[Author, timedelta]],
    answers: list[tuple[Author, timedelta]],
    status: Status,
    until_close: timedelta,
    gap: timedelta,
    random: Random,
) -> None:
    """Nothing newer than the close was read before, except agents' messages no newer than the user's."""
    at, first = T0, [message(at=T0)]
    for author, step in before:
        at += step
        first.append(message(author, at))
    closed_at = at + until_close
    newer_at = closed_at + gap
    first += [message(author, min(closed_at + step, newer_at)) for author, step in answers]
    random.shuffle(first)
    opened = fold(Conversation("c-1"), first, (), POLICY, newer_at).after
    closing, newer = close(status, closed_at), message(at=newer_at)

    one = fold(opened, [closing, newer], (), POLICY, newer_at).after
    other = fold(opened, [newer, closing], (), POLICY, newer_at).after

    assert len(opened.sessions) == 1
    assert [session.status for session in one.sessions] == [session.status for session in other.sessions]


def _dated(event: Event, at: datetime) -> Event:
    match event:
        case Message():
            return message(event.author, at, intent=event.intent)
        case ManualClose():
            return close(event.status, at)
        case Tick():
            return tick(at)


def loaded(conversation: Conversation, later: list[Event], now: datetime) -> Conversation:
    """As the store loads it: the sessions that the events may belong to are enough."""
    if not conversation.sessions:
        return conversation
    *archived, current = conversation.sessions
    return conversation._replace(sessions=(*needed(current, archived, [event.at for event in later], now), current))


@given(histories, st.lists(events, min_size=1, max_size=4), times)
def test_the_sessions_that_events_belong_to_are_enough_to_decide_them(
    some: list[Event], later: list[Event], now: datetime
) -> None:
    whole = fold(Conversation("c-1"), some, (), POLICY, T0 + 400 * HOUR).after
    part = loaded(whole, later, now)

    decided, expected = fold(part, later, (), POLICY, now), fold(whole, later, (), POLICY, now)

    assert (decided.rows, decided.outcomes, decided.clamped) == (expected.rows, expected.outcomes, expected.clamped)
    present = {session.number for session in decided.after.sessions}
    assert decided.after.sessions == tuple(one for one in expected.after.sessions if one.number in present)
    left_out = {session.number for session in whole.sessions} - {session.number for session in part.sessions}
    assert {one for one in whole.sessions if one.number in left_out} <= set(expected.after.sessions)
