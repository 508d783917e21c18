"""The same events under two policies: what is stored comes out again, and what would have been."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from datetime import datetime, timedelta
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from consumer.commands.spool import Spool
from consumer.commands.what_if import dated
from consumer.history.what_if import Comparison, Ends, HistoryReplay, LogReplay, Tally
from consumer.lifecycle.model import (
    Author,
    Conversation,
    Event,
    HistoryRow,
    Intent,
    Outcome,
    Policy,
    Session,
    Status,
)
from consumer.lifecycle.rules import apply, fold
from consumer.records import Record
from tests.builders import HOUR, MINUTE, SECOND, T0, close, message, tick

POLICY = Policy()
END = T0 + 10_000 * HOUR
MANUAL = [Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED]
Recorded = Sequence[tuple[HistoryRow, datetime]]

steps = st.builds(
    lambda edge, nudge: abs(edge + nudge),
    st.sampled_from([0 * SECOND, 5 * SECOND, 10 * MINUTE, 15 * MINUTE, 6 * HOUR, 24 * HOUR, 48 * HOUR]),
    st.sampled_from([0 * SECOND, SECOND, -SECOND, timedelta(microseconds=1), MINUTE]),
)
events = st.one_of(
    st.builds(message, st.sampled_from(list(Author)), intent=st.sampled_from([None, None, None, Intent.CLOSE])),
    st.builds(close, st.sampled_from(MANUAL)),
    st.builds(tick),
)
durations = st.sampled_from([SECOND, MINUTE, 15 * MINUTE, 6 * HOUR, 24 * HOUR, 48 * HOUR, 500 * HOUR])
policies = st.builds(Policy, **{field.name: durations for field in fields(Policy) if field.name != "clock_tolerance"})


def ordered(spaced: Iterable[tuple[timedelta, Event]]) -> list[Event]:
    steps_taken, some = zip(*spaced, strict=True)
    times = accumulate(steps_taken, initial=T0)
    return [event._replace(at=at) for at, event in zip(list(times)[1:], some, strict=True)]


def history(some: Sequence[Event], policy: Policy = POLICY, delays: Sequence[timedelta] = ()) -> Recorded:
    """What the service stores of events that it decides at their own times, or so much later."""
    conversation, rows = Conversation("c-1"), list[tuple[HistoryRow, datetime]]()
    for number, event in enumerate(some):
        now = event.at + (delays[number] if delays else timedelta(0))
        decision = apply(conversation, event, policy, now)
        conversation = decision.conversation
        rows += [(row, now) for row in decision.rows]
    return rows


def replayed(
    recorded: Recorded,
    changed: Policy = POLICY,
    since: datetime = T0 - HOUR,
    until: datetime = END,
    archive: Sequence[Session] = (),
) -> tuple[Ends | None, Tally]:
    tally = Tally(limit=10)
    replay = HistoryReplay("c-1", archive, Comparison(POLICY, changed, since, until), tally)
    for row, at in recorded:
        replay.add(row, at)
    return replay.end(), tally


@given(
    st.lists(st.tuples(steps, events), max_size=12),
    st.lists(st.sampled_from([timedelta(0), -4 * SECOND, SECOND, HOUR, 30 * HOUR]), min_size=12, max_size=12),
    st.randoms(use_true_random=False),
)
def test_under_the_policy_in_force_exactly_what_is_stored_comes_out(
    spaced: list[tuple[timedelta, Event]], delays: list[timedelta], random: object
) -> None:
    some = ordered(spaced) if spaced else []
    random.shuffle(some)  # type: ignore[attr-defined]
    recorded = history(some, delays=delays)

    ends, tally = replayed(recorded)

    assert tally.not_as_stored == 0
    assert tally.outcomes_before == tally.outcomes_after
    assert (tally.otherwise, tally.at_another_time) == (0, 0)
    assert ends is None if not recorded else ends is not None and ends.before == ends.after


@given(st.lists(st.tuples(steps, events), min_size=1, max_size=12), policies)
def test_a_changed_policy_gives_what_the_service_would_have_stored_under_it(
    spaced: list[tuple[timedelta, Event]], changed: Policy
) -> None:
    some = ordered(spaced)
    recorded = history(some)
    from_scratch = Conversation("c-1")
    for event in some:
        from_scratch = apply(from_scratch, event, changed, event.at).conversation
    settled = apply(from_scratch, tick(END), changed, END).conversation

    ends, _ = replayed(recorded, changed)

    assert (ends.after if ends else ()) == settled.sessions


@given(st.lists(st.tuples(steps, events), min_size=1, max_size=12), policies)
def test_the_log_under_a_changed_policy_gives_what_the_service_would_have_stored_under_it(
    spaced: list[tuple[timedelta, Event]], changed: Policy
) -> None:
    some = ordered(spaced)
    settled = fold(Conversation("c-1"), [*some, tick(END)], (), changed, END).after
    replay = LogReplay("c-1", Comparison(POLICY, changed, T0 - HOUR, END), Tally())

    for event in [*some, *some]:
        replay.add(event, END)
    ends = replay.end()

    assert ends is not None
    assert ends.after == settled.sessions


def test_a_shorter_deadline_closes_what_an_answer_kept_open() -> None:
    recorded = history([message(at=T0), message(Author.AGENT, T0 + 20 * HOUR), close(at=T0 + 21 * HOUR)])

    ends, tally = replayed(recorded, replace(POLICY, pending_ttl=12 * HOUR))

    assert ends is not None
    assert [session.status for session in ends.before] == [Status.AGENT_CLOSED]
    assert [session.status for session in ends.after] == [Status.EXPIRED, Status.AGENT_CLOSED]
    assert (tally.otherwise, tally.conversations, tally.events) == (1, 1, 3)


def test_the_same_end_at_another_time_is_counted_apart() -> None:
    _, tally = replayed(history([message(at=T0)]), replace(POLICY, pending_ttl=12 * HOUR))

    assert (tally.otherwise, tally.at_another_time) == (0, 1)


def test_deadlines_stored_before_the_change_stand_until_they_are_renewed() -> None:
    changed = replace(POLICY, pending_ttl=HOUR)
    answered = history([message(at=T0), message(Author.AGENT, T0 + 3 * HOUR), close(at=T0 + 4 * HOUR)])
    renewed = history([message(at=T0), message(at=T0 + 3 * HOUR), message(Author.AGENT, T0 + 6 * HOUR)])

    _, stood = replayed(answered, changed, since=T0 + 2 * HOUR)
    ends, _ = replayed(renewed, changed, since=T0 + 2 * HOUR)

    assert stood.otherwise == 0
    assert ends is not None
    assert [session.status for session in ends.after] == [Status.EXPIRED, Status.EXPIRED]
    assert ends.after[0].closed_at == T0 + 4 * HOUR


def test_sessions_that_were_over_before_the_change_do_not_count() -> None:
    recorded = history([message(at=T0), close(at=T0 + HOUR), message(at=T0 + 5 * HOUR), close(at=T0 + 6 * HOUR)])

    ends, tally = replayed(recorded, since=T0 + 2 * HOUR)

    assert ends is not None
    assert [session.number for session in ends.before] == [2]
    assert tally.events == 2


def test_a_conversation_without_an_event_after_the_change_is_no_part_of_it() -> None:
    assert replayed(history([message(at=T0)]), since=T0 + HOUR)[0] is None


def test_where_history_is_pruned_it_starts_with_the_next_session() -> None:
    recorded = history(
        [
            *(message(at=T0), message(Author.AGENT, T0 + HOUR), close(at=T0 + 2 * HOUR)),
            *(message(at=T0 + 3 * HOUR), message(Author.AGENT, T0 + 4 * HOUR)),
        ]
    )
    archive = apply(Conversation("c-1"), close(at=T0 + 2 * HOUR), POLICY, T0 + 2 * HOUR).conversation.sessions

    ends, tally = replayed(recorded[1:], archive=archive, since=T0 - HOUR)

    assert ends is not None
    assert [(session.number, session.user_messages) for session in ends.before] == [(2, 1)]
    assert (tally.left_out, tally.events, tally.not_as_stored) == (2, 2, 0)


def test_a_history_of_another_policy_is_noticed() -> None:
    recorded = history([message(at=T0), message(at=T0 + 3 * HOUR)], replace(POLICY, pending_ttl=HOUR))

    _, tally = replayed(recorded)

    assert tally.not_as_stored == 1


def test_the_first_delivery_of_a_record_wins() -> None:
    tally = Tally()
    replay = LogReplay("c-1", Comparison(POLICY, POLICY, T0, END), tally)
    first = message(at=T0)

    for event in (first, first._replace(at=T0 + HOUR), close(at=T0 + HOUR)):
        replay.add(event, T0 + HOUR)
    replay.end()

    assert tally.duplicates == 1
    assert tally.outcomes_before == {Outcome.APPLIED: 2}


def test_an_event_is_decided_when_it_was_decided_however_late_it_came() -> None:
    """Too late for a reinstatement: at its own time it would have been one."""
    some: list[Event] = [message(at=T0), tick(T0 + 49 * HOUR), message(at=T0 + 47 * HOUR)]
    recorded = history(some, delays=[timedelta(0), timedelta(0), 50 * HOUR])

    _, tally = replayed(recorded)

    assert tally.outcomes_before == {Outcome.APPLIED: 1, Outcome.LATE: 1}
    assert tally.not_as_stored == 0


def test_a_session_that_was_open_at_the_change_counts_though_nothing_touched_it() -> None:
    some: list[Event] = [
        message(at=T0),
        close(at=T0 + HOUR),
        message(at=T0 + 2 * HOUR),
        message(Author.SYSTEM, T0 + HOUR),
    ]
    recorded = history(some, delays=[timedelta(0), timedelta(0), timedelta(0), 3 * HOUR])

    ends, _ = replayed(recorded, since=T0 + 3 * HOUR, until=T0 + 5 * HOUR)

    assert ends is not None
    assert [(session.number, session.status) for session in ends.before] == [(2, Status.PENDING)]


def test_after_the_change_it_stays_changed_though_the_clock_runs_back() -> None:
    some: list[Event] = [message(at=T0), message(Author.AGENT, at=T0 + MINUTE), close(at=T0 + 2 * MINUTE)]
    recorded = history(some, delays=[3 * HOUR, timedelta(0), 3 * HOUR])

    ends, tally = replayed(recorded, since=T0 + 2 * HOUR)

    assert ends is not None
    assert (ends.before == ends.after, tally.events, tally.not_as_stored) == (True, 3, 0)


def test_a_gap_in_the_history_starts_it_anew() -> None:
    """As an interrupted pruning leaves it."""
    some: list[Event] = [message(at=T0), message(at=T0 + HOUR), close(at=T0 + 2 * HOUR), message(at=T0 + 3 * HOUR)]
    recorded = history(some)
    archive = [fold(Conversation("c-1"), some[:3], (), POLICY, END).after.sessions[0]]

    ends, tally = replayed([recorded[0], *recorded[2:]], archive=archive)

    assert ends is not None
    assert [session.number for session in ends.before] == [2]
    assert (tally.left_out, tally.not_as_stored) == (1, 0)


def test_events_of_a_partition_keep_the_order_of_the_log_whatever_the_times_of_their_records() -> None:
    first, second, third, other = message(), message(), message(), message()
    records = [
        *((Record("events", 0, 0, 10, b"", b""), first), (Record("events", 0, 1, 30, b"", b""), second)),
        *((Record("events", 0, 2, 20, b"", b""), third), (Record("events", 1, 0, 15, b"", b""), other)),
    ]

    with Spool.open() as spool:
        spool.add(dated(records, {}))
        ((key, found),) = [(key, list(events)) for key, events in spool.conversations()]

    assert key == "c-1"
    assert found == [(10, first), (15, other), (30, second), (30, third)]
