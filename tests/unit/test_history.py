"""What a history says: folded again, as of a time, compared with the rows, explained."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given

from consumer.errors import ConsumerError
from consumer.history.comparison import Result, Stored, compare, repair_row
from consumer.history.past import as_of, decided_later
from consumer.history.replay import History, replay, retrace
from consumer.lifecycle.model import Author, Conversation, Event, Policy, Status
from consumer.lifecycle.rules import apply, fold
from tests.builders import HOUR, MINUTE, SECOND, T0, close, message, tick
from tests.model import oracle
from tests.unit.test_lifecycle_properties import histories

POLICY = Policy()
DAY = 24 * HOUR


def stored(*events: Event, reads: Sequence[datetime] | None = None, now: datetime | None = None) -> Stored:
    """What is stored after `events`, each decided at the time that `reads` has for it; by default at its own."""
    conversation, history = Conversation("c-1"), []
    times = reads or [max(event.at for event in events[: number + 1]) for number in range(len(events))]
    for event, at in zip(events, times, strict=True):
        conversation, rows, _ = apply(conversation, event, POLICY, at)
        history += [(row, at) for row in rows]
    *archive, row = conversation.sessions
    return Stored("c-1", conversation.version, row, tuple(archive), row.deadline, history, now or times[-1])


class TestReplay:
    @given(histories)
    def test_the_second_writing_of_the_rules_folds_to_what_the_history_replays_to(self, some: list[Event]) -> None:
        """The checker replays histories by the shipped rules; the oracle shows that this hides no mistake of theirs."""
        conversation, history = Conversation("c-1"), list[Any]()
        for event in some:
            conversation, rows, _ = oracle.decide(conversation, event, POLICY, event.at)
            history += [(row, event.at) for row in rows]

        retraced = retrace("c-1", history, POLICY)

        assert replay("c-1", history, POLICY) == conversation
        assert (retraced.conversation, retraced.contradiction) == (conversation, None)
        assert [step.row for step in retraced.steps] == [row for row, _ in history]

    def test_a_history_that_another_policy_made_is_a_contradiction(self) -> None:
        made = stored(message(), tick(T0 + 72 * HOUR))

        contradiction = retrace("c-1", made.history, replace(POLICY, pending_ttl=96 * HOUR)).contradiction

        assert contradiction == "version 2 applied pending -> expired: the fold has no such row"

    @pytest.mark.parametrize("ttl", [HOUR, 47 * HOUR])
    def test_a_deadline_that_this_policy_would_have_let_pass_is_a_contradiction(self, ttl: timedelta) -> None:
        made = stored(message(), message(at=T0 + 47 * HOUR + MINUTE))

        contradiction = retrace("c-1", made.history, replace(POLICY, pending_ttl=ttl)).contradiction

        assert contradiction
        assert "version 2 applied pending -> pending in the history" in contradiction

    def test_an_outcome_that_somebody_edited_is_a_contradiction(self) -> None:
        made = stored(message(), close(at=T0 + HOUR))
        edited = [(row._replace(actor="nobody") if row.version == 1 else row, at) for row, at in made.history]

        assert retrace("c-1", edited, POLICY).contradiction

    def test_a_repair_is_a_version_that_changes_nothing(self) -> None:
        made = stored(message(), close(at=T0 + HOUR))
        repaired: History = [*made.history, (repair_row(made.conversation, T0 + 2 * HOUR), T0 + 2 * HOUR)]

        assert replay("c-1", repaired, POLICY) == made.conversation._replace(version=3)
        assert retrace("c-1", repaired, POLICY).contradiction is None


class TestAsOf:
    @given(histories)
    def test_at_each_moment_it_is_what_the_events_until_then_had_made(self, some: list[Event]) -> None:
        conversation, history, seen = Conversation("c-1"), list[Any](), list[tuple[datetime, Conversation]]()
        for number, event in enumerate(some):
            at = T0 + 400 * DAY + number * SECOND
            conversation, rows, _ = apply(conversation, event, POLICY, at)
            history += [(row, at) for row in rows]
            seen.append((at, conversation))
        row, archive = conversation.current, conversation.sessions[:-1]
        whole = Stored("c-1", conversation.version, row, archive, None, history, T0 + 500 * DAY)

        assert [as_of(whole, at, POLICY) for at, _ in seen] == [then for _, then in seen]

    def test_what_was_read_later_was_not_known_then(self) -> None:
        made = stored(
            message(), close(at=T0 + HOUR), close(Status.FAILED, T0 + 2 * HOUR), reads=[T0, T0 + HOUR, T0 + 5 * HOUR]
        )

        then = as_of(made, T0 + 3 * HOUR, POLICY)

        assert then.sessions[-1].status is Status.AGENT_CLOSED
        assert [row.to_status for row in decided_later(made, T0 + 3 * HOUR)] == [Status.FAILED]

    def test_before_the_first_event_there_is_nothing(self) -> None:
        assert as_of(stored(message()), T0 - SECOND, POLICY).version == 0

    def test_pruned_history_is_no_answer(self) -> None:
        made = stored(message(), close(at=T0 + HOUR), close(Status.FAILED, T0 + 2 * HOUR))
        pruned = replace(made, history=made.history[1:])

        with pytest.raises(ConsumerError, match=r"2 of 3 history rows .*version 2 of .*left session 1 as agent_closed"):
            as_of(pruned, T0 + HOUR, POLICY)
        with pytest.raises(ConsumerError, match="none of those left was decided by then"):
            as_of(pruned, T0, POLICY)

    def test_since_its_last_event_it_is_as_it_is_although_the_rest_is_pruned(self) -> None:
        made = stored(message(), close(at=T0 + HOUR))

        assert as_of(replace(made, history=made.history[1:]), T0 + HOUR, POLICY) == made.conversation

    def test_a_wholly_pruned_history_is_no_answer(self) -> None:
        made = stored(message(), close(at=T0 + HOUR))

        with pytest.raises(ConsumerError, match="0 of 2 history rows"):
            as_of(replace(made, history=[]), T0 + 9 * HOUR, POLICY)

    def test_a_history_of_another_policy_is_no_answer(self) -> None:
        made = stored(message(), message(at=T0 + 49 * HOUR), message(at=T0 + 50 * HOUR))

        with pytest.raises(ConsumerError, match=r"CONSUMER_POLICY__\*"):
            as_of(made, T0 + 49 * HOUR, replace(POLICY, pending_ttl=96 * HOUR))


class TestComparison:
    def found(self, made: Stored, policy: Policy = POLICY) -> tuple[Result, set[tuple[int | None, str]], bool]:
        finding = compare(made, policy)
        named = {(one.session, one.name) for one in finding.differences}
        return finding.result, named, finding.target is not None

    def made(self) -> Stored:
        return stored(message(), close(at=T0 + HOUR), message(at=T0 + 2 * HOUR), message(Author.AGENT, T0 + 3 * HOUR))

    @given(histories)
    def test_what_the_rules_wrote_is_equal(self, some: list[Event]) -> None:
        change = fold(Conversation("c-1"), some, (), POLICY, max((e.at for e in some), default=T0) + SECOND)
        if change.after.sessions:
            *archive, row = change.after.sessions
            at = max(event.at for event in some) + SECOND
            history = [(row, at) for row in change.rows]
            made = Stored("c-1", change.after.version, row, tuple(archive), row.deadline, history, at)

            assert compare(made, POLICY).differences == ()

    @pytest.mark.parametrize(
        "name", ["status", "user_messages", "last_activity_at", "opened_at", "accepted_by", "number"]
    )
    def test_each_field_that_differs_is_named(self, name: str) -> None:
        made = self.made()
        assert made.row
        values: dict[str, Any] = {"status": Status.PENDING, "user_messages": 7, "accepted_by": None, "number": 3}
        broken = replace(made, row=made.row._replace(**{name: values.get(name, T0 - HOUR)}))

        assert self.found(broken) == (Result.DIFFERS, {(2, name)}, True)

    def test_a_row_that_is_gone_is_found(self) -> None:
        result, named, repairable = self.found(replace(self.made(), row=None, version=0, wake_at=None))

        assert (result, named, repairable) == (Result.DIFFERS, {(None, "version"), (2, "row")}, True)

    def test_sessions_of_the_archive_are_compared(self) -> None:
        made = self.made()

        assert self.found(replace(made, archive=())) == (Result.DIFFERS, {(1, "row")}, True)
        more = replace(made, archive=(*made.archive, made.archive[0]._replace(number=9)))
        assert self.found(more) == (Result.DIFFERS, {(9, "archived")}, True)

    def test_a_version_that_is_behind_its_history_is_found(self) -> None:
        assert self.found(replace(self.made(), version=3)) == (Result.DIFFERS, {(None, "version")}, True)

    @pytest.mark.parametrize("kept", [slice(1, None), slice(0, -1), slice(0, 0)])
    def test_nothing_is_said_where_rows_are_missing(self, kept: slice) -> None:
        made = self.made()
        assert made.row
        broken = replace(made, history=made.history[kept], row=made.row._replace(user_messages=9))

        assert self.found(broken) == (Result.NOT_WHOLE, set(), False)

    def test_a_repeated_version_is_not_whole(self) -> None:
        made = self.made()

        assert compare(replace(made, history=[*made.history, made.history[-1]]), POLICY).result is Result.NOT_WHOLE

    def test_deadlines_of_another_policy_are_left_alone(self) -> None:
        later = replace(POLICY, progress_ttl=30 * HOUR)

        assert self.found(self.made(), later) == (Result.OTHER_POLICY, {(2, "expires_at")}, False)

    def test_deadlines_stay_where_something_else_is_repaired(self) -> None:
        made = self.made()
        assert made.row
        broken = replace(made, row=made.row._replace(user_messages=9))

        target = compare(broken, replace(POLICY, progress_ttl=30 * HOUR)).target

        assert target
        assert target.sessions[-1] == made.row

    def test_a_history_of_another_policy_is_not_repaired_by(self) -> None:
        made = stored(message(), message(at=T0 + 49 * HOUR))
        assert made.row
        broken = replace(made, row=made.row._replace(user_messages=9))

        finding = compare(broken, replace(POLICY, pending_ttl=96 * HOUR))

        assert (finding.result, finding.target) == (Result.OTHER_POLICY, None)

    def test_the_timer_is_judged_as_far_as_it_can_be_known(self) -> None:
        made = self.made()
        assert made.row
        assert made.row.deadline
        late = max(made.row.deadline, made.now + 15 * MINUTE)

        assert self.found(replace(made, wake_at=T0))[0] is Result.EQUAL
        assert self.found(replace(made, wake_at=late))[0] is Result.EQUAL
        assert self.found(replace(made, wake_at=late + SECOND)) == (Result.DIFFERS, {(None, "wake_at")}, True)
        assert self.found(replace(made, wake_at=None)) == (Result.DIFFERS, {(None, "wake_at")}, True)
        closed = stored(message(), close(at=T0 + HOUR))
        assert self.found(replace(closed, wake_at=T0)) == (Result.DIFFERS, {(None, "wake_at")}, True)
