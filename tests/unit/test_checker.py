"""The checker's own parts, on histories that are known."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from consumer.decoding import encoded
from consumer.history.replay import replay
from consumer.lifecycle.model import Author, Conversation, Event, HistoryRow, Policy, Status
from consumer.lifecycle.rules import fold
from consumer.records import Record
from tests.builders import HOUR, SECOND, T0, close, message, tick
from tests.checker.ledger import Evidence, Ledger, Letter, Move, Verdict
from tests.checker.verdicts import liveness, safety, story
from tests.demo.races import RACES, held, new_race, one_came_first

POLICY = Policy()
NOW = T0 + 50 * HOUR


def test_a_violation_is_told_as_the_conversations_story() -> None:
    change = fold(Conversation("c-1"), [message(at=T0), close(Status.AGENT_CLOSED, T0 + HOUR)], (), POLICY, NOW)

    lines = story([(row, NOW) for row in change.rows])

    assert len(lines) == 2
    assert "v1 session 1: inbound-message user by user at 12:00:00" in lines[0]
    assert "applied: pending -> agent_closed" in lines[1]


def test_a_verdict_holds_without_violations_only() -> None:
    assert Verdict("nothing is wrong", 3, ()).holds
    assert not Verdict("something is", 3, ("c-1",)).holds


EVENTS: list[Event] = [message(at=T0), close(Status.AGENT_CLOSED, T0 + HOUR), close(Status.FAILED, T0 + 2 * HOUR)]
CHANGE = fold(Conversation("c-1"), EVENTS, (), POLICY, NOW)
HISTORY = [(row, NOW) for row in CHANGE.rows]
POISON = Record("events", 0, 3, 0, b"c-1", b"not json")
LOG = [*(Record("events", 0, n, 0, *encoded(event)) for n, event in enumerate(EVENTS)), POISON]
LETTER = Letter("events", 0, 3, b"c-1", b"not json")
GOOD = Evidence({"c-1": CHANGE.after}, {"c-1": HISTORY}, LOG, [LETTER], {("events", 0): 4}, [Move("events", 0, 0, 4)])


def ledger() -> Ledger:
    made = Ledger(poison=Counter({(POISON.key, POISON.value): 1}))
    for event in EVENTS:
        made.note(event)
    return made


def broken(evidence: Evidence, sent: Ledger | None = None) -> set[str]:
    verdicts = [*safety(sent or ledger(), evidence, POLICY), *liveness(sent or ledger(), evidence, NOW)]
    return {verdict.invariant for verdict in verdicts if not verdict.holds}


def with_session(**changes: Any) -> Mapping[str, Conversation]:
    after = CHANGE.after
    return {"c-1": Conversation("c-1", after.version, (after.sessions[0]._replace(**changes),))}


CLOSED_EARLY = with_session(closed_at=T0 - HOUR)
OTHER_ORDER = [LOG[1]._replace(offset=0), LOG[0]._replace(offset=1), *LOG[2:]]


def test_a_run_without_a_mistake_breaks_nothing() -> None:
    assert broken(GOOD) == set()


@pytest.mark.parametrize(
    ("invariant", "evidence"),
    [
        ("one effect per event", replace(GOOD, histories={"c-1": [*HISTORY, HISTORY[0]]})),
        ("versions 1..V without gap or repeat", replace(GOOD, histories={"c-1": HISTORY[1:]})),
        ("the history folds to the rows", replace(GOOD, conversations=with_session(user_messages=7))),
        ("no session is closed before its user's last message", replace(GOOD, conversations=CLOSED_EARLY)),
        ("dead letters are poison, byte for byte", replace(GOOD, letters=[replace(LETTER, value=b"not  json")])),
        ("dead letters are poison, byte for byte", replace(GOOD, letters=[LETTER, replace(LETTER, offset=2)])),
        ("nothing before a stored offset is skipped", replace(GOOD, letters=[])),
        ("nothing before a stored offset is skipped", replace(GOOD, histories={})),
        ("applied in the order of the log", replace(GOOD, log=OTHER_ORDER)),
        ("offsets never move backwards", replace(GOOD, moves=[Move("events", 0, 4, 2)])),
        ("no event lost", replace(GOOD, histories={})),
        ("all poison is in dead letters", replace(GOOD, letters=[])),
        ("offsets at the end of the log", replace(GOOD, offsets={("events", 0): 3})),
        ("no deadline without effect", replace(GOOD, conversations=with_session(expires_at=NOW - HOUR))),
    ],
    ids=str,
)  # fmt: skip
def test_each_mistake_breaks_its_invariant(invariant: str, evidence: Evidence) -> None:
    assert invariant in broken(evidence)


def test_what_was_deleted_unread_is_no_loss_where_it_was_given_up() -> None:
    first = EVENTS[:1]
    change = fold(Conversation("c-1"), first, (), POLICY, NOW)
    given_up = frozenset(("events", 0, record.offset) for record in LOG[1:])
    evidence = replace(
        GOOD, conversations={"c-1": change.after}, histories={"c-1": [(change.rows[0], NOW)]}, letters=[], moves=[]
    )

    assert {"no event lost", "all poison is in dead letters"} <= broken(evidence)
    assert not {"no event lost", "all poison is in dead letters"} & broken(replace(evidence, given_up=given_up))


def test_what_was_written_by_the_service_or_lies_elsewhere_too_is_never_given_up() -> None:
    evidence = replace(GOOD, histories={}, conversations={}, given_up=frozenset({("events", 0, 0)}))
    again = replace(evidence, log=[*LOG, LOG[0]._replace(offset=4)])
    by_the_service = ledger()
    by_the_service.note_written(EVENTS[0])

    lost = [
        {violation for v in liveness(sent, found) for violation in v.violations if v.invariant == "no event lost"}
        for sent, found in ((ledger(), evidence), (ledger(), again), (by_the_service, evidence))
    ]

    assert [len(violations) for violations in lost] == [2, 3, 3]


def test_a_tick_has_no_place_in_the_order_whatever_its_id() -> None:
    """Ticks have no identity: one may carry the id of an event that comes after it."""
    early = tick(T0, source=EVENTS[2].source, event_id=EVENTS[2].event_id)
    log = [Record("events", 0, 0, 0, *encoded(early)), *(r._replace(offset=r.offset + 1) for r in LOG)]
    letters = [replace(LETTER, offset=4)]

    assert broken(replace(GOOD, log=log, letters=letters, offsets={("events", 0): 5})) == set()


def test_an_event_that_nobody_sent_is_noticed() -> None:
    assert "no event that nobody sent" in broken(GOOD, Ledger())


def test_a_reclassification_that_ranks_no_higher_is_noticed() -> None:
    row = CHANGE.rows[-1]._replace(from_status=Status.FAILED)
    assert "a closing yields to a higher one only" in broken(
        replace(GOOD, histories={"c-1": [*HISTORY[:-1], (row, NOW)]})
    )


def test_a_second_open_session_is_noticed() -> None:
    first = CHANGE.after.sessions[0]._replace(status=Status.PENDING, closed_at=None)
    both = Conversation("c-1", 3, (first, first._replace(number=2)))

    assert "only the last session may be open" in broken(replace(GOOD, conversations={"c-1": both}))


def test_a_history_that_was_tampered_with_no_longer_folds_to_the_rows() -> None:
    events: list[Event] = [message(at=T0), message(Author.AGENT, T0 + HOUR), tick(NOW)]
    change = fold(Conversation("c-1"), events, (), POLICY, NOW)
    history = [(row, NOW) for row in change.rows]

    assert replay("c-1", history, POLICY) == change.after
    assert replay("c-1", history[1:], POLICY) != change.after


def test_every_race_comes_out_right_in_both_orders_and_is_told_apart() -> None:
    for kind in RACES:
        race = new_race(kind, 1, POLICY)
        now = datetime.now(UTC)
        for first, second in ((race.one, race.other), (race.other, race.one)):
            conversation, history = Conversation(race.conversation_id), list[tuple[HistoryRow, datetime]]()
            for step, event in enumerate((race.opening, first, second)):
                change = fold(conversation, [event], (), POLICY, now)
                conversation = change.after
                history += [(row, now + step * SECOND) for row in change.rows]

            assert held(race, conversation.sessions, history), (kind, first)
            assert one_came_first(race, history) == (first is race.one or kind == 5), (kind, first)
