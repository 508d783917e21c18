"""Judges a run: what was sent and acknowledged against the tables, the dead letters, the offsets and the metrics."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
from pydantic import SecretStr

from consumer.conversation import Conversation, Event, HistoryRow, Policy, Tick
from consumer.devstack.database import APPLIED
from consumer.devstack.replay import replay
from consumer.devstack.topic import read_all
from consumer.metrics import Sample, total
from consumer.postgres import PostgresStore
from consumer.settings import DatabaseSettings, KafkaSettings


@dataclass(slots=True)
class Ledger:
    """What was sent and acknowledged. An event is known by conversation id, source and event id."""

    events: set[tuple[str, str, str]] = field(default_factory=set)
    poison: Counter[tuple[bytes | None, bytes | None]] = field(default_factory=Counter)
    records: int = 0
    direct: int = 0

    def note(self, event: Event) -> None:
        if not isinstance(event, Tick):
            self.events.add((event.conversation_id, event.source, event.event_id))


@dataclass(frozen=True, slots=True)
class Verdict:
    """One invariant: how many things were looked at, and the first of those that break it."""

    invariant: str
    looked_at: int
    violations: tuple[str, ...]
    story: tuple[str, ...] = ()
    """What happened to the first conversation that breaks it, in order."""

    @property
    def holds(self) -> bool:
        return not self.violations


async def judge(
    ledger: Ledger, kafka: KafkaSettings, database: str, policy: Policy, metrics: list[Sample] | None
) -> list[Verdict]:
    """All invariants, after the log was read to its end and every replica has stopped in good order.

    `metrics` are true of runs in which no owner lost its partition with work in hand; leave them out of others.
    """
    connection = await asyncpg.connect(database)
    try:
        return [
            *await _events(ledger, connection),
            *await _conversations(database, connection, policy),
            await _dead_letters(ledger, kafka),
            await _offsets(ledger, connection),
            await _trail(connection),
            *(await _metrics(ledger, connection, metrics) if metrics is not None else ()),
        ]
    finally:
        await connection.close()


async def _events(ledger: Ledger, connection: asyncpg.Connection) -> list[Verdict]:
    rows = await connection.fetch(
        "SELECT conversation_id, source, event_id FROM conversation_event WHERE source <> 'consumer'"
    )
    seen = Counter(tuple(row) for row in rows)
    return [
        Verdict("no event lost", len(ledger.events), _some(ledger.events - seen.keys())),
        Verdict("one effect per event", len(seen), _some(key for key, times in seen.items() if times > 1)),
        Verdict("no event that nobody sent", len(seen), _some(seen.keys() - ledger.events)),
    ]


async def _conversations(database: str, connection: asyncpg.Connection, policy: Policy) -> list[Verdict]:
    """Reads every conversation with its history, which must be a chain of versions and fold to the rows."""
    ids = [row[0] for row in await connection.fetch("SELECT conversation_id FROM conversation ORDER BY 1")]
    broken, unlike, open_early = [], [], []
    stories: dict[str, tuple[str, ...]] = {}
    async with PostgresStore.open(DatabaseSettings(url=SecretStr(database))) as store:
        for conversation_id in ids:
            sessions, version = await store.conversation(conversation_id)
            history = await store.history(conversation_id)
            if [row.version for row, _ in history] != list(range(1, version + 1)):
                broken.append(conversation_id)
            if replay(conversation_id, history, policy) != Conversation(conversation_id, version, tuple(sessions)):
                unlike.append(conversation_id)
            if any(session.status.is_open for session in sessions[:-1]):
                open_early.append(conversation_id)
            if conversation_id in (*broken[-1:], *unlike[-1:], *open_early[-1:]):
                stories[conversation_id] = story(history)
    return [
        Verdict(invariant, len(ids), _some(found), stories[found[0]] if found else ())
        for invariant, found in (
            ("versions 1..V without gap or repeat", broken),
            ("the history folds to the rows", unlike),
            ("only the last session may be open", open_early),
        )
    ]


def story(history: Iterable[tuple[HistoryRow, datetime]]) -> tuple[str, ...]:
    """A conversation's history, a line for each row, as it was decided."""
    return tuple(
        f"{recorded_at:%H:%M:%S.%f} v{row.version} session {row.session}: "
        f"{row.kind} {row.requested or ''} by {row.actor} at {row.occurred_at:%H:%M:%S.%f}, "
        f"{row.outcome}: {row.from_status or '-'} -> {row.to_status}"
        for row, recorded_at in history
    )


async def _dead_letters(ledger: Ledger, kafka: KafkaSettings) -> Verdict:
    """The poison, byte for byte. One may repeat after a crash: it names the same place in the log then."""
    letters = await read_all(kafka, kafka.dead_letter_topic)
    places = {
        (dict(letter.headers)["__consumer.errors.partition"], dict(letter.headers)["__consumer.errors.offset"]): letter
        for letter in letters
    }
    found = Counter((letter.key, letter.value) for letter in places.values())
    differing = (found - ledger.poison) + (ledger.poison - found)
    return Verdict("dead letters are exactly the poison", ledger.poison.total(), _some(differing))


async def _offsets(ledger: Ledger, connection: asyncpg.Connection) -> Verdict:
    applied = await connection.fetchval(APPLIED)
    behind = () if applied == ledger.records else (f"offsets at {applied} of {ledger.records}",)
    return Verdict("offsets at the end of the log", ledger.records, behind)


async def _trail(connection: asyncpg.Connection) -> Verdict:
    """Every move that the offsets made, kept by a trigger of the stage."""
    moves = await connection.fetch("SELECT topic, partition, before, after FROM offset_trail ORDER BY id")
    back = [f"{topic}[{partition}] {before} -> {after}" for topic, partition, before, after in moves if after < before]
    return Verdict("offsets never move backwards", len(moves), tuple(back))


async def _metrics(ledger: Ledger, connection: asyncpg.Connection, metrics: list[Sample]) -> list[Verdict]:
    """True on runs without a crash: a crash takes its counters along."""
    rows = await connection.fetchval("SELECT count(*) FROM conversation_event WHERE source <> 'consumer'")
    ticks = total(metrics, "conversation_events_total", type="tick", outcome="applied")
    committed = total(metrics, "conversation_write_attempts_total", result="committed")
    outcomes, received = total(metrics, "conversation_events_total"), ledger.records + ledger.direct
    return [
        Verdict("every event received has an outcome", received, _equal(outcomes, received)),
        Verdict("committed = history rows + effective ticks", int(committed), _equal(committed, rows + ticks)),
    ]


def _equal(found: float, expected: float) -> tuple[str, ...]:
    return () if found == expected else (f"{found:.0f} instead of {expected:.0f}",)


def _some(violations: Iterable[object]) -> tuple[str, ...]:
    return tuple(str(violation) for violation in violations)
