"""Why a session has its status: sentences for every status and outcome, and for what would still change it."""

from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given

from consumer.history.comparison import Stored, repair_row
from consumer.history.explanation import Explanation, explain
from consumer.lifecycle.model import Author, Event, Outcome, Status
from consumer.lifecycle.rules import apply
from tests.builders import HOUR, MINUTE, SECOND, T0, close, goodbye, message, tick
from tests.unit.test_history import DAY, POLICY, stored
from tests.unit.test_lifecycle_properties import histories


def sentences(found: Explanation) -> str:
    return "\n".join(sentence.text for sentence in found.sentences)


def why(*events: Event, session: int | None = None, **times: Any) -> str:
    made = stored(*events, **times)
    return sentences(explain(made, session or made.conversation.sessions[-1].number, POLICY))


AT = "2026-03-01 12:00:00.000"
EXPIRED = tick(T0 + 49 * HOUR)


class TestWhyEachStatus:
    @pytest.mark.parametrize(
        ("events", "said"),
        [
            ([message()], f"Opened as pending by the user's message of {AT}: nobody has answered since."),
            ([message(Author.AGENT)], f"Opened as progress by an agent's message of {AT}: it counts as answered."),
            (
                [message(), message(Author.SUPPORT, T0 + MINUTE)],
                "In progress by support's message of 2026-03-01 12:01:00.000: it answered the pending session.",
            ),
            (
                [message(Author.AGENT), tick(T0 + HOUR)],
                f"Idle since 2026-03-01 12:15:00.000: nobody wrote for 15 min after the last activity at {AT}.",
            ),
            (
                [message(Author.AGENT), tick(T0 + HOUR), message(at=T0 + 2 * HOUR)],
                "In progress again by the user's message of 2026-03-01 14:00:00.000: the session had been idle.",
            ),
            (
                [message(), EXPIRED],
                f"(pending_ttl): nobody answered, and nobody wrote for 48 h after the last activity at {AT}.",
            ),
            (
                [message(Author.AGENT), EXPIRED],
                "Expired at 2026-03-02 12:00:00.000 (progress_ttl): nobody wrote for 24 h after the last activity",
            ),
            (
                [message(), close(Status.AGENT_CLOSED, T0 + HOUR, reason="solved")],
                '13:00:00.000 with the reason "solved". It was pending: a tick would have closed it as expired at 2026',
            ),
            ([message(), close(Status.SUPPORT_CLOSED, T0 + HOUR)], "Closed as support_closed by agent-7"),
            ([message(), close(Status.FAILED, T0 + HOUR)], "Closed as failed by agent-7"),
            ([message(), goodbye(T0 + HOUR)], "Closed as user_closed by the user's goodbye"),
            ([goodbye()], "Closed as user_closed by the user's goodbye"),
            (
                [close()],
                f"Closed as agent_closed by agent-7, dated {AT}. No earlier event of this",
            ),
        ],
    )
    def test_the_event_that_decided_it_is_named(self, events: list[Event], said: str) -> None:
        assert said in why(*events)

    def test_every_status_is_explained(self) -> None:
        cases: dict[Status, list[Event]] = {
            Status.PENDING: [message()],
            Status.PROGRESS: [message(Author.AGENT)],
            Status.IDLE_TIMEOUT: [message(Author.AGENT), tick(T0 + HOUR)],
            Status.EXPIRED: [message(), EXPIRED],
            Status.USER_CLOSED: [goodbye()],
        }
        others = Status.AGENT_CLOSED, Status.SUPPORT_CLOSED, Status.FAILED
        cases |= {status: [message(), close(status, T0 + HOUR)] for status in others}

        for status in Status:
            made = stored(*cases[status])
            found = explain(made, 1, POLICY)
            assert found.session.status is status
            assert len(found.sentences) >= 2


class TestWhyEachOutcome:
    def test_a_reclassified_session_names_what_it_outranked(self) -> None:
        said = why(message(), EXPIRED, close(Status.AGENT_CLOSED, T0 + 50 * HOUR))

        assert (
            "Closed as agent_closed by agent-7, dated 2026-03-03 14:00:00.000: it outranked expired, which had taken "
            "effect at 2026-03-03 12:00:00.000." in said
        )
        assert said.startswith("Expired at 2026-03-03 12:00:00.000")

    def test_a_reinstated_session_names_the_proof(self) -> None:
        said = why(message(), EXPIRED, message(at=T0 + HOUR), reads=[T0, EXPIRED.at, T0 + 50 * HOUR])

        assert (
            "Reinstated as pending by the user's message of 2026-03-01 13:00:00.000: it was read at 2026-03-03 "
            "14:00:00.000, after the session had expired" in said
        )

    def test_an_outranked_close_is_named_with_the_rank(self) -> None:
        said = why(message(), goodbye(T0 + HOUR), close(Status.AGENT_CLOSED, T0 + 2 * HOUR, actor="bot"))

        assert "Outranked: agent_closed by bot, dated 2026-03-01 14:00:00.000; user_closed ranks higher." in said

    def test_of_two_equals_the_first_stays_and_the_earlier_dates_the_closing(self) -> None:
        said = why(message(), close(at=T0 + 2 * HOUR), close(at=T0 + HOUR))

        assert "of two equals the first stays. As the earlier one it dates the closing: 2026-03-01 13:00:00.000" in said

    @pytest.mark.parametrize(
        ("events", "reads", "said"),
        [
            ([close(at=T0 + HOUR), close(Status.FAILED, T0 + 30 * HOUR)], None, "more than 24 h after the closing at"),
            ([close(at=T0 + HOUR), goodbye(T0 + HOUR + 6 * SECOND)], None, "a goodbye counts until 5 s after"),
            (
                [close(at=T0 + HOUR), message(Author.AGENT, T0 + HOUR + MINUTE)],
                None,
                "what an agent or support writes within 10 min after the closing at",
            ),
            ([close(at=T0 + HOUR), message(Author.SYSTEM, T0 + 9 * HOUR)], None, "neither opens a session nor reopens"),
            ([close(at=T0 + HOUR), message(at=T0 + MINUTE)], None, "a closing on purpose stays"),
            ([EXPIRED, message(at=T0)], None, "not newer than the last activity"),
            ([EXPIRED, message(at=T0 + HOUR)], [EXPIRED.at, T0 + 80 * HOUR], "24 h or more after the closing at"),
            (
                [close(at=T0 + HOUR), message(at=T0 + 9 * HOUR), message(at=T0 + MINUTE)],
                None,
                "by its date it belongs to session 1, which another had followed",
            ),
        ],
    )
    def test_a_late_event_names_the_rule(self, events: list[Event], reads: list[datetime] | None, said: str) -> None:
        made = stored(message(), *events, reads=reads and [T0, *reads])
        found = explain(made, 1, POLICY)

        assert [row.outcome for row, _ in made.history if row.session == 1][-1] is Outcome.LATE
        assert said in sentences(found)

    def test_both_parts_of_a_split_are_explained(self) -> None:
        events: list[Event] = [message(), message(at=T0 + 2 * HOUR), close(at=T0 + HOUR)]

        assert "The user's newer message of 2026-03-01 14:00:00.000 was split off into session 2." in why(
            *events, session=1
        )
        assert (
            "Opened as pending by a split: session 1 was closed by an event dated before the user's newest message of "
            "2026-03-01 14:00:00.000, but read after it." in why(*events)
        )

    def test_of_many_that_changed_nothing_the_last_are_told(self) -> None:
        said = why(message(), goodbye(T0 + HOUR), *(close(at=T0 + HOUR + n * MINUTE) for n in range(8)))

        assert said.count("Outranked") == 5
        assert "3 more events before these changed no status" in said

    def test_a_repair_is_told(self) -> None:
        made = stored(message())
        row = repair_row(made.conversation, T0 + HOUR)
        repaired = replace(made, version=2, history=[*made.history, (row, T0 + HOUR)])

        said = sentences(explain(repaired, 1, POLICY))

        assert "The row was written anew from its history at 2026-03-01 13:00:00.000" in said


class TestWhatWouldStillChangeIt:
    """Each sentence is tried: the event that it names does what it says, and the next moment's does not."""

    def status_after(self, made: Stored, event: Event, now: datetime | None = None) -> tuple[int, Status]:
        after = apply(made.conversation, event, POLICY, now or max(event.at, made.now)).conversation
        return after.sessions[-1].number, after.sessions[-1].status

    def test_a_higher_rank_until_the_end_of_the_window(self) -> None:
        made = stored(message(), close(Status.SUPPORT_CLOSED, T0 + HOUR))
        last = T0 + 25 * HOUR

        assert "A user_closed or failed dated by 2026-03-02 13:00:00.000 (24 h after the closing)" in why(
            message(), close(Status.SUPPORT_CLOSED, T0 + HOUR)
        )
        assert self.status_after(made, close(Status.FAILED, last)) == (1, Status.FAILED)
        assert self.status_after(made, close(Status.FAILED, last + SECOND)) == (1, Status.SUPPORT_CLOSED)

    def test_nothing_replaces_failed(self) -> None:
        assert "Nothing outranks failed." in why(message(), close(Status.FAILED, T0 + HOUR))

    def test_an_older_session_yields_until_the_next_one_opened(self) -> None:
        said = why(message(), close(at=T0 + HOUR), message(at=T0 + 2 * HOUR), session=1)

        assert (
            "A support_closed, user_closed or failed dated before 2026-03-01 14:00:00.000 (session 2) would still "
            "replace it." in said
        )
        assert "Session 2 has followed: no message changes this one." in said

    def test_a_proof_of_life_while_there_is_time(self) -> None:
        events: list[Event] = [message(), EXPIRED]
        made = stored(*events)

        assert (
            "A message of the user, an agent or support dated after 2026-03-01 12:00:00.000 and by 2026-03-03 "
            "12:00:00.000, read before 2026-03-04 12:00:00.000, would reinstate it." in why(*events)
        )
        assert self.status_after(made, message(at=T0 + 48 * HOUR), T0 + 71 * HOUR) == (1, Status.PENDING)
        assert self.status_after(made, message(at=T0 + 48 * HOUR), T0 + 72 * HOUR) == (1, Status.EXPIRED)
        assert "No message from before the expiry reinstates it any more" in why(*events, now=T0 + 72 * HOUR)

    def test_who_opens_the_next_session_and_when(self) -> None:
        events: list[Event] = [message(), close(at=T0 + HOUR)]
        made = stored(*events)

        assert (
            "The user's next message, dated after 2026-03-01 13:00:00.000, opens session 2; so does one of an agent or "
            "support dated after 2026-03-01 13:10:00.000." in why(*events)
        )
        assert self.status_after(made, message(Author.AGENT, T0 + HOUR + 10 * MINUTE)) == (1, Status.AGENT_CLOSED)
        assert self.status_after(made, message(Author.AGENT, T0 + HOUR + 11 * MINUTE)) == (2, Status.PROGRESS)

    @pytest.mark.parametrize(
        ("events", "now", "said"),
        [
            ([message()], T0, "Unless somebody writes, it expires at 2026-03-03 12:00:00.000."),
            (
                [message(Author.AGENT)],
                T0,
                "Unless somebody writes, it becomes idle_timeout at 2026-03-01 12:15:00.000.",
            ),
            (
                [message(Author.AGENT)],
                T0 + HOUR,
                "deadline of 2026-03-01 12:15:00.000 has passed: the next tick or newer event makes it idle_timeout",
            ),
            ([message()], T0 + 49 * HOUR, "the next tick or newer event makes it expired"),
        ],
    )
    def test_what_the_timer_will_do(self, events: list[Event], now: datetime, said: str) -> None:
        assert said in why(*events, now=now)


class TestWhyWithoutTheStatesOfThen:
    def test_pruned_history_says_less_and_says_so(self) -> None:
        made = stored(message(), EXPIRED, close(at=T0 + 50 * HOUR), close(at=T0 + 51 * HOUR))

        found = explain(replace(made, history=made.history[2:]), 1, POLICY)

        assert found.unknown == "2 of 4 history rows are there: the others are pruned or lost"
        assert "it outranked expired." in sentences(found)

    def test_a_history_without_rows_still_has_an_outlook(self) -> None:
        found = explain(replace(stored(message(), close(at=T0 + HOUR)), history=[]), 1, POLICY)

        assert "would still replace it" in sentences(found)

    def test_another_policy_is_named(self) -> None:
        found = explain(stored(message(), EXPIRED), 1, replace(POLICY, pending_ttl=DAY))

        assert found.unknown
        assert "the policy of now does not lead to this history" in found.unknown

    def test_an_unknown_session_is_no_session(self) -> None:
        with pytest.raises(LookupError):
            explain(stored(message()), 2, POLICY)


@given(histories)
def test_every_session_of_any_history_is_explained(some: list[Event]) -> None:
    made = stored(message(), *some)

    for session in made.conversation.sessions:
        found = explain(made, session.number, POLICY)
        assert found.sentences[0].version
        assert found.sentences[-1].version is None
        assert found.unknown is None
