"""Judges a run by what it left behind: the ledger of what was sent, against tables, log, dead letters and metrics.

Safety (nothing wrong ever happens) may be judged at any moment, liveness (the right thing happens in the end) only when
the faults are healed and everybody had time.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from datetime import UTC, datetime
from itertools import pairwise

from consumer.decoding import to_event
from consumer.history.replay import History, replay
from consumer.lifecycle.model import (
    CONSUMER_SOURCE,
    RANK,
    Conversation,
    Event,
    HistoryRow,
    Outcome,
    Policy,
    Status,
    Tick,
)
from consumer.observability.metrics import Sample, total
from consumer.outbox import OutboxRow, event_id
from consumer.records import Record
from schemas import Invalid, decode
from tests.checker.ledger import Evidence, Key, Ledger, Place, Verdict, key_of, place_of

Read = Sequence[tuple[Record, Event | None]]
"""The log, each record with the event in it; none in poison."""


def safety(ledger: Ledger, evidence: Evidence, policy: Policy) -> list[Verdict]:
    """What must hold at every moment, whatever has happened."""
    seen = _applied(evidence)
    read = [(record, event_in(record)) for record in evidence.log]
    return [
        Verdict("one effect per event", len(seen), _some(key for key, times in seen.items() if times > 1)),
        Verdict("no event that nobody sent", len(seen), _some(seen.keys() - ledger.events - ledger.unsure)),
        *_conversations(evidence, policy),
        _letters_are_poison(ledger, evidence),
        _nothing_skipped(evidence, read, seen),
        _in_the_order_of_the_log(ledger, evidence, read),
        _forward(evidence),
        *_published_in_order(evidence),
    ]


def liveness(ledger: Ledger, evidence: Evidence, settled_to: datetime | None = None) -> list[Verdict]:
    """What must hold in the end. With `settled_to`, every deadline before it has taken effect."""
    seen = _applied(evidence)
    places = {place_of(letter): letter for letter in evidence.letters}
    dead_lettered = Counter((letter.key, letter.value) for letter in places.values())
    sessions = [(key, c.sessions[-1].deadline) for key, c in evidence.conversations.items() if c.sessions]
    overdue = [key for key, deadline in sessions if settled_to and deadline and deadline < settled_to]
    events, poison = _given_up(ledger, evidence, places.keys())
    return [
        Verdict("no event lost", len(ledger.events), _some(ledger.events - seen.keys() - events)),
        Verdict("all poison is in dead letters", ledger.poison.total(), _some(ledger.poison - dead_lettered - poison)),
        _at_the_end(evidence),
        *_all_published(evidence),
        *([Verdict("no deadline without effect", len(sessions), _some(overdue))] if settled_to else ()),
    ]


def _given_up(
    ledger: Ledger, evidence: Evidence, dead_lettered: Set[tuple[str, int, int]]
) -> tuple[set[Key], Counter[tuple[bytes | None, bytes | None]]]:
    """Events and poison that nobody can ask for: given up wherever they lay, and not written by the service."""
    if not evidence.given_up:
        return set(), Counter()
    given_up: set[Key] = set()
    elsewhere: set[Key] = set()
    poison: Counter[tuple[bytes | None, bytes | None]] = Counter()
    for record in evidence.log:
        is_given_up = place_of(record) in evidence.given_up
        if (event := event_in(record)) is not None:
            (given_up if is_given_up else elsewhere).add(key_of(event))
        if is_given_up and place_of(record) not in dead_lettered:
            poison[record.key, record.value] += 1
    return given_up - elsewhere - ledger.written, poison


def truth_of_metrics(ledger: Ledger, evidence: Evidence, metrics: Sequence[Sample]) -> list[Verdict]:
    """True on runs in which no owner lost its partition with work in hand: a crash takes its counters along."""
    rows = _applied(evidence).total()
    ticks = total(metrics, "conversation_events_total", type="tick", outcome="applied")
    committed = total(metrics, "conversation_write_attempts_total", result="committed")
    outcomes, received = total(metrics, "conversation_events_total"), ledger.records + ledger.direct
    return [
        Verdict("every event received has an outcome", received, _equal(outcomes, received)),
        Verdict("committed = history rows + effective ticks", int(committed), _equal(committed, rows + ticks)),
    ]


def story(history: History) -> tuple[str, ...]:
    """A conversation's history, a line for each row, as it was decided."""
    return tuple(
        f"{recorded_at:%H:%M:%S.%f} v{row.version} session {row.session}: "
        f"{row.kind} {row.requested or ''} by {row.actor} at {row.occurred_at:%H:%M:%S.%f}, "
        f"{row.outcome}: {row.from_status or '-'} -> {row.to_status} [{row.source} {row.event_id}]"
        for row, recorded_at in history
    )


def _applied(evidence: Evidence) -> Counter[Key]:
    """How often each event has had an effect."""
    return Counter(
        key_of(row) for history in evidence.histories.values() for row, _ in history if row.source != CONSUMER_SOURCE
    )


def _conversations(evidence: Evidence, policy: Policy) -> Iterator[Verdict]:
    """Each conversation with its history, which must be a chain of versions and fold to the rows."""

    def is_chain(conversation: Conversation, history: History) -> bool:
        return [row.version for row, _ in history] == list(range(1, conversation.version + 1))

    def folds(conversation: Conversation, history: History) -> bool:
        return replay(conversation.id, history, policy) == conversation

    def ends_open_at_most(conversation: Conversation, _: History) -> bool:
        return not any(session.status.is_open for session in conversation.sessions[:-1])

    def keeps_the_priority(_: Conversation, history: History) -> bool:
        return all(_is_fair(row) for row, _ in history)

    def closes_after_the_user(conversation: Conversation, _: History) -> bool:
        return not any(
            s.closed_at and s.closed_at < (s.last_user_message_at or s.opened_at) for s in conversation.sessions
        )

    invariants: dict[str, Callable[[Conversation, History], bool]] = {
        "versions 1..V without gap or repeat": is_chain,
        "the history folds to the rows": folds,
        "only the last session may be open": ends_open_at_most,
        "a closing yields to a higher one only": keeps_the_priority,
        "no session is closed before its user's last message": closes_after_the_user,
    }
    both = {
        key: (evidence.conversations.get(key, Conversation(key)), evidence.histories.get(key, ()))
        for key in sorted(evidence.conversations.keys() | evidence.histories.keys())
    }
    for invariant, holds in invariants.items():
        broken = [key for key, pair in both.items() if not holds(*pair)]
        yield Verdict(invariant, len(both), tuple(broken), story(both[broken[0]][1]) if broken else ())


def _is_fair(row: HistoryRow) -> bool:
    """Whether a row on a closed session keeps the closing priority; a reinstatement is the one way back."""
    before, requested = row.from_status, Status.USER_CLOSED if row.requested == "close" else row.requested
    if row.outcome is Outcome.RECLASSIFIED:
        return before in RANK and RANK[row.to_status] < RANK[before]
    if row.outcome is Outcome.OUTRANKED:
        return before in RANK and RANK[Status(requested or "")] >= RANK[before]
    if before is None or before.is_open:
        return True
    return row.to_status is before or (row.outcome is Outcome.REINSTATED and before is Status.EXPIRED)


def _letters_are_poison(ledger: Ledger, evidence: Evidence) -> Verdict:
    """Byte for byte what lies in the log. One may repeat after a crash."""
    log = {place_of(record): (record.key, record.value) for record in evidence.log}
    wrong = [
        f"{letter.topic}[{letter.partition}] {letter.offset}"
        for letter in evidence.letters
        if log.get(place_of(letter)) != (letter.key, letter.value) or (letter.key, letter.value) not in ledger.poison
    ]
    return Verdict("dead letters are poison, byte for byte", len(evidence.letters), tuple(wrong))


def _nothing_skipped(evidence: Evidence, read: Read, seen: Mapping[Key, int]) -> Verdict:
    """Whatever lies before a stored offset has its effect, or its dead letter, or was given up."""
    accounted_for = {place_of(letter) for letter in evidence.letters} | evidence.given_up
    passed = [(r, event) for r, event in read if r.offset < evidence.offsets.get((r.topic, r.partition), 0)]
    skipped = [
        f"{record.topic}[{record.partition}] {record.offset}"
        for record, event in passed
        if place_of(record) not in accounted_for and not _has_effect(event, seen)
    ]
    return Verdict("nothing before a stored offset is skipped", len(passed), tuple(skipped))


def _has_effect(event: Event | None, seen: Mapping[Key, int]) -> bool:
    return isinstance(event, Tick) or (event is not None and key_of(event) in seen)


def event_in(record: Record) -> Event | None:
    """The event of a record; none in poison."""
    try:
        return to_event(decode(record.key, record.value, record.headers, now=datetime.now(UTC)))
    except Invalid:
        return None


def _in_the_order_of_the_log(ledger: Ledger, evidence: Evidence, read: Read) -> Verdict:
    """Of each conversation, what came first in a partition was applied first.

    What came by two ways is left out, and so is what was given up at one place: it may have been applied there or not.
    """
    versions = {key_of(row): row.version for history in evidence.histories.values() for row, _ in history}
    given_up = {key_of(event) for record, event in read if event and place_of(record) in evidence.given_up}
    elsewhere = ledger.written | ledger.unsure | given_up
    places: dict[Key, set[Place]] = {}
    first_seen: dict[tuple[Place, str], list[Key]] = {}
    for record, event in sorted(read, key=lambda pair: pair[0].offset):
        if event is None or isinstance(event, Tick) or (key := key_of(event)) not in versions or key in elsewhere:
            continue
        place = record.topic, record.partition
        if place not in places.setdefault(key, set()):
            first_seen.setdefault((place, event.conversation_id), []).append(key)
        places[key].add(place)
    orders = [[key for key in keys if len(places[key]) == 1] for keys in first_seen.values()]
    pairs = [pair for order in orders for pair in pairwise(order)]
    overtaken = [f"{one} by {other}" for one, other in pairs if versions[one] > versions[other]]
    return Verdict("applied in the order of the log", len(pairs), tuple(overtaken))


def _transitions(evidence: Evidence) -> dict[str, list[str]]:
    """Conversation id -> the event ids of its transitions, by version."""
    return {
        key: [transition_id(row, recorded_at) for row, recorded_at in history if row.is_transition]
        for key, history in evidence.histories.items()
    }


def transition_id(row: HistoryRow, recorded_at: datetime) -> str:
    """The id that the transition of a history row is published with."""
    what = (row.conversation_id, row.session, row.version, row.from_status, row.to_status, row.actor, row.reason)
    return event_id(OutboxRow(0, *what, row.occurred_at, recorded_at))


def _published_in_order(evidence: Evidence) -> Iterator[Verdict]:
    """Whatever repeats: the first of each come by version and without a gap, and nobody made another one up."""
    if evidence.published is None:
        return
    expected = _transitions(evidence)
    first: dict[str, dict[str, None]] = {}
    for record in evidence.published:
        if record.event_id in expected.get(record.conversation_id, ()):
            first.setdefault(record.conversation_id, {}).setdefault(record.event_id)
    broken = [key for key, ids in first.items() if list(ids) != expected[key][: len(ids)]]
    yield Verdict("transitions are published by version, without a gap", len(first), _some(broken))
    if not evidence.rewinds:
        made_up = [r for r in evidence.published if r.event_id not in expected.get(r.conversation_id, ())]
        yield Verdict("no transition that is not in the history", len(evidence.published), _some(made_up))


def _all_published(evidence: Evidence) -> Iterator[Verdict]:
    if evidence.published is not None:
        published = {record.event_id for record in evidence.published}
        expected = {one for ids in _transitions(evidence).values() for one in ids}
        yield Verdict("every transition is published", len(expected), _some(expected - published))


def _forward(evidence: Evidence) -> Verdict:
    back = [f"{m.topic}[{m.partition}] {m.before} -> {m.after}" for m in evidence.moves if m.after < m.before]
    return Verdict("offsets never move backwards", len(evidence.moves), tuple(back))


def _at_the_end(evidence: Evidence) -> Verdict:
    """The log's own gaps do not count: the next offset is past the last record."""
    ends: dict[Place, int] = {}
    for record in evidence.log:
        place = record.topic, record.partition
        ends[place] = max(ends.get(place, 0), record.offset + 1)
    behind = [
        f"{place[0]}[{place[1]}] at {evidence.offsets.get(place)} of {end}"
        for place, end in ends.items()
        if evidence.offsets.get(place, -1) < end
    ]
    return Verdict("offsets at the end of the log", len(evidence.log), tuple(behind))


def _equal(found: float, expected: float) -> tuple[str, ...]:
    return () if found == expected else (f"{found:.0f} instead of {expected:.0f}",)


def _some(violations: Iterable[object]) -> tuple[str, ...]:
    return tuple(sorted(str(violation) for violation in violations))
