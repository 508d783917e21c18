"""The checker's own parts, on histories that are known."""

from datetime import UTC, datetime

from consumer.conversation import Author, Conversation, Event, HistoryRow, Policy, Status, fold
from consumer.devstack.checker import Verdict, story
from consumer.devstack.duels import RACES, duel, held, one_came_first
from consumer.devstack.replay import replay
from tests.builders import HOUR, SECOND, T0, close, message, tick

POLICY = Policy()
NOW = T0 + 50 * HOUR


def test_a_violation_is_told_as_the_conversations_story() -> None:
    change = fold(Conversation("c-1"), [message(at=T0), close(Status.AGENT_CLOSED, T0 + HOUR)], (), POLICY, NOW)

    told = story([(row, NOW) for row in change.rows])

    assert len(told) == 2
    assert "v1 session 1: inbound-message user by user at 12:00:00" in told[0]
    assert "applied: pending -> agent_closed" in told[1]


def test_a_verdict_holds_without_violations_only() -> None:
    assert Verdict("nothing is wrong", 3, ()).holds
    assert not Verdict("something is", 3, ("c-1",)).holds


def test_a_history_that_was_tampered_with_no_longer_folds_to_the_rows() -> None:
    events: list[Event] = [message(at=T0), message(Author.AGENT, T0 + HOUR), tick(NOW)]
    change = fold(Conversation("c-1"), events, (), POLICY, NOW)
    history = [(row, NOW) for row in change.rows]

    assert replay("c-1", history, POLICY) == change.after
    assert replay("c-1", history[1:], POLICY) != change.after


def test_every_race_comes_out_right_in_both_orders_and_is_told_apart() -> None:
    for race in RACES:
        fight = duel(race, 1, POLICY)
        now = datetime.now(UTC)
        for first, second in ((fight.one, fight.other), (fight.other, fight.one)):
            conversation, history = Conversation(fight.conversation_id), list[tuple[HistoryRow, datetime]]()
            for step, event in enumerate((fight.opening, first, second)):
                change = fold(conversation, [event], (), POLICY, now)
                conversation = change.after
                history += [(row, now + step * SECOND) for row in change.rows]

            assert held(fight, conversation.sessions, history), (race, first)
            assert one_came_first(fight, history) == (first is fight.one or race == 5), (race, first)
