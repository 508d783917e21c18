"""The lifecycle, step by step as anything may happen, against the rules written a second time."""

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from consumer.history.replay import replay
from consumer.lifecycle.model import (
    RANK,
    Author,
    Closing,
    Conversation,
    Decision,
    Event,
    HistoryRow,
    Identity,
    Intent,
    Outcome,
    Policy,
    Status,
    Tick,
)
from consumer.lifecycle.rules import apply, deadlines, fold
from tests.builders import MINUTE, SECOND, T0, close, goodbye, message, tick
from tests.model.oracle import decide

POLICY = Policy()
HASTY = Policy(
    pending_ttl=20 * MINUTE,
    progress_ttl=15 * MINUTE,
    idle_after=15 * MINUTE,
    reclassification_window=15 * MINUTE,
    follow_up_grace=5 * SECOND,
    goodbye_grace=SECOND,
)
MANUAL = [Status.FAILED, Status.USER_CLOSED, Status.SUPPORT_CLOSED, Status.AGENT_CLOSED]
MICROSECOND = timedelta(microseconds=1)
NUDGES = [timedelta(0), -MICROSECOND, MICROSECOND]
# Every window of the policy: 5 s, 10 min, 15 min, 24 h, 48 h.
WINDOWS = [POLICY.goodbye_grace, POLICY.follow_up_grace, POLICY.idle_after, POLICY.progress_ttl, POLICY.pending_ttl]

nudges = st.sampled_from(NUDGES)
steps = st.builds(lambda window, nudge: window + nudge, st.sampled_from(WINDOWS), nudges)
Moment = tuple[str, timedelta]
"""How far from now, or from a time that the current session remembers."""
anchors = st.sampled_from(["now", "now", "last_activity_at", "last_user_message_at", "closed_at", "deadline"])
moments = st.tuples(anchors, st.one_of(nudges, steps, steps.map(lambda step: -step)))
authors = st.sampled_from(list(Author))
statuses = st.sampled_from(MANUAL)


class Lifecycle(RuleBasedStateMachine):
    """One conversation to which anything may happen next; `expected` is what the rules say of the latest batch."""

    seen = Bundle[Closing]("seen")

    def __init__(self) -> None:
        super().__init__()
        self.now = T0
        self.known: set[Identity] = set()
        self.history: list[tuple[HistoryRow, datetime]] = []
        self.conversation = Conversation("c-1")
        self._deliver()

    @rule(step=steps)
    def time_passes(self, step: timedelta) -> None:
        self.now += step

    @rule(nudge=nudges)
    def the_deadline_comes(self, nudge: timedelta) -> None:
        self.now = max(self.now, self._at(("deadline", nudge)))

    @rule(target=seen, author=authors)
    def somebody_writes(self, author: Author) -> Closing:
        return self._deliver_first(message(author, self.now))

    @rule(target=seen, author=authors, moment=moments)
    def a_message_is_late_or_ahead_of_time(self, author: Author, moment: Moment) -> Closing:
        return self._deliver_first(message(author, self._at(moment)))

    @rule(target=seen, moment=moments)
    def the_user_says_goodbye(self, moment: Moment) -> Closing:
        return self._deliver_first(goodbye(self._at(moment)))

    @rule(target=seen, status=statuses, moment=moments)
    def somebody_closes(self, status: Status, moment: Moment) -> Closing:
        return self._deliver_first(close(status, self._at(moment)))

    @rule(moment=moments)
    def the_timer_ticks_twice(self, moment: Moment) -> None:
        self._deliver(*[tick(self._at(moment))] * 2)

    @rule(target=seen, earlier=seen, author=authors, moment=moments)
    def events_come_again_at_once_and_later(self, earlier: Closing, author: Author, moment: Moment) -> Closing:
        first = message(author, self.now)
        self._deliver(earlier._replace(at=self._at(moment)), first, first._replace(at=self._at(moment)))
        return first

    @rule(status=statuses, delay=steps, nudge=nudges)
    def a_close_is_read_after_newer_messages(self, status: Status, delay: timedelta, nudge: timedelta) -> None:
        newer = [message(at=self.now), message(Author.AGENT, self.now + nudge)]
        self._deliver(*newer, close(status, self.now - delay))

    @rule(author=authors, delay=steps, nudge=nudges)
    def a_message_from_about_the_expiry_shows_up(self, author: Author, delay: timedelta, nudge: timedelta) -> None:
        session = self.conversation.current
        if session and session.expires_at:
            self.now = max(self.now, session.expires_at + delay)
            self._deliver(tick(self.now), message(author, session.expires_at + nudge))

    def _at(self, moment: Moment) -> datetime:
        anchor, step = moment
        return (getattr(self.conversation.current, anchor, None) or self.now) + step

    def _deliver_first(self, event: Closing) -> Closing:
        self._deliver(event)
        return event

    def _deliver(self, *events: Event) -> None:
        self.before = self.conversation
        self.expected = list(decisions(self.before, events, self.known, self.now))
        self.change = fold(self.before, events, self.known, POLICY, self.now)
        self.conversation = self.change.after
        self.history += [(row, self.now) for row in self.change.rows]
        self.known |= identities(*events)

    @invariant()
    def the_rules_say_the_same(self) -> None:
        assert self.change.outcomes == tuple(decision.outcome for decision in self.expected)
        assert self.change.rows == tuple(row for decision in self.expected for row in decision.rows)
        assert self.conversation == (self.expected[-1].conversation if self.expected else self.before)

    @invariant()
    def the_version_is_the_number_of_rows(self) -> None:
        assert [row.version for row, _ in self.history] == list(range(1, self.conversation.version + 1))

    @invariant()
    def deadlines_follow_from_status_and_last_activity(self) -> None:
        for session in self.conversation.sessions:
            assert (session.idle_at, session.expires_at) == deadlines(session.status, session.last_activity_at, POLICY)

    @invariant()
    def only_the_last_session_is_open(self) -> None:
        for session in self.conversation.sessions:
            is_last = session.number == len(self.conversation.sessions)
            assert not session.status.is_open or is_last
            assert session.status.is_open == (session.closed_at is None)

    @invariant()
    def sessions_do_not_overlap(self) -> None:
        for session, following in pairwise(self.conversation.sessions):
            assert session.closed_at is not None
            assert session.opened_at <= session.closed_at <= following.opened_at
            assert session.number + 1 == following.number

    @invariant()
    def the_closing_rank_worsens_only_by_reinstatement(self) -> None:
        if Outcome.REINSTATED in self.change.outcomes:
            return
        for session, after in zip(self.before.sessions, self.conversation.sessions, strict=False):
            if not session.status.is_open:
                assert RANK[after.status] <= RANK[session.status]

    @invariant()
    def the_history_alone_folds_to_the_conversation(self) -> None:
        assert replay("c-1", self.history, POLICY) == self.conversation


def test_whatever_happens_next_is_what_the_rules_say() -> None:
    run_state_machine_as_test(Lifecycle, settings=settings(stateful_step_count=20))


def test_the_rules_written_twice_agree_on_many_random_events_under_changing_policies() -> None:
    random = Random(4711)
    for _ in range(1_000):
        conversation, now, policy = Conversation("c-1"), T0, POLICY
        for _ in range(20):
            now = max(now, near(random, conversation, now))
            policy = random.choices([policy, POLICY, HASTY], [8, 1, 1])[0]
            event = any_event(random, near(random, conversation, now))

            decision = apply(conversation, event, policy, now)

            assert decision == decide(conversation, event, policy, now)
            conversation = decision.conversation


def near(random: Random, conversation: Conversation, now: datetime) -> datetime:
    """A time at or just beside now or a time that the conversation remembers, or one window away from it."""
    remembered = [
        at
        for session in conversation.sessions[-2:]
        for at in (session.opened_at, session.last_activity_at, session.closed_at, session.deadline)
        if at is not None
    ]
    window = random.choice([timedelta(0), *WINDOWS])
    return random.choice([now, *remembered]) + random.choice([0, 0, 1, -1]) * window + random.choice(NUDGES)


def any_event(random: Random, at: datetime) -> Event:
    match random.randrange(10):
        case 0:
            return tick(at)
        case 1 | 2 | 3:
            return close(random.choice(MANUAL), at, reason=random.choice([None, "solved"]))
        case _:
            return message(random.choice(list(Author)), at, intent=random.choice([None, None, None, Intent.CLOSE]))


def decisions(
    conversation: Conversation, events: Iterable[Event], known: Collection[Identity], now: datetime
) -> Iterator[Decision]:
    """What the rules say of a batch, event by event: a duplicate touches nothing."""
    before = set(known)
    for event in events:
        if before & identities(event):
            yield Decision(conversation, (), Outcome.DUPLICATE)
            continue
        decision = decide(conversation, event, POLICY, now)
        conversation = decision.conversation
        before |= identities(event)
        yield decision


def identities(*events: Event) -> set[Identity]:
    """A tick has none: it may be repeated at will."""
    return {(event.source, event.event_id) for event in events if not isinstance(event, Tick)}
