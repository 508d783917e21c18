"""The world of one schedule: the log, the dead letters, the database, the clock, and the faults that strike them."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random

from consumer.errors import ConnectionLostError, TooSlowError, UnavailableError
from consumer.lifecycle.model import HistoryRow
from consumer.offsets import Partition
from consumer.records import DeadLetter, Record
from tests.checker.verdicts import Evidence, Ledger, Letter, Move, Published, event_in, key_of
from tests.memory_database import MemoryDatabase

EPOCH = datetime(2026, 3, 1, tzinfo=UTC)
GROUP, TOPIC = "group", "events"
REFUSED = "agent-whom-the-database-refuses"


class Fault(StrEnum):
    """What goes wrong. Each schedule draws which of them may strike it."""

    CRASH = "crash"
    CRASH_IN_A_STATEMENT = "crash in a statement"
    RESTART = "restart in good order"
    STALL = "stall, and back as a zombie"
    ZOMBIE = "owner that has not heard of its successor"
    REBALANCE = "rebalance"
    LOST_REQUEST = "connection lost before a statement"
    LOST_REPLY = "reply to a commit lost"
    TOO_SLOW = "statement timeout"
    OUTAGE = "database outage"
    REWIND = "database rewound"
    FAILOVER = "failover that loses a commit"
    CLOCK = "database clock set back or forth"
    ROW_LOCK = "row lock held by an outsider"
    OTHER_WRITER = "write of another writer"
    NO_DEAD_LETTERS = "dead letter not acknowledged"
    LOST_TICK = "tick lost or not acknowledged"
    POISON = "poison record"
    REFUSED = "event that the database refuses"
    DUPLICATE = "duplicate"
    LATE = "event out of order"
    AHEAD = "event dated ahead"
    MISPLACED = "record on another partition"
    GAP = "gap in the log"
    NOT_PUBLISHED = "transition not acknowledged"


@dataclass(frozen=True, slots=True)
class Shape:
    """How a schedule is laid out: drawn from its seed, small worlds and large ones."""

    replicas: int
    partitions: int
    other_writers: int
    conversations: int
    events: int
    max_batch: int
    writers: int
    pace_seconds: float
    chaos_seconds: float
    faults: tuple[Fault, ...]
    relays: int

    @classmethod
    def of(cls, seed: int) -> "Shape":
        rng = Random(f"shape of {seed}")
        return cls(
            replicas=rng.randint(1, 3),
            partitions=rng.randint(1, 4),
            other_writers=rng.randint(0, 2),
            conversations=rng.randint(1, 6),
            events=rng.randint(5, 60),
            max_batch=rng.choice((1, 3, 10, 100)),
            writers=rng.choice((1, 2, 8)),
            pace_seconds=rng.choice((0.001, 0.01, 0.1)),
            chaos_seconds=rng.uniform(5, 40),
            faults=tuple(fault for fault in Fault if rng.random() < 0.5),
            relays=rng.randint(1, 2),
        )


class World:
    """Everything outside the processes. `now` is the database's clock, and the only one."""

    def __init__(self, seed: int) -> None:
        self.shape = Shape.of(seed)
        self.rng = Random(seed)
        self.ledger = Ledger()
        self.database = MemoryDatabase(self.now, _refuses)
        self.backup = self.database.copied()
        self.log: dict[int, list[Record]] = {number: [] for number in range(self.shape.partitions)}
        self.published: set[tuple[str, str, str]] = set()
        self.letters: list[Letter] = []
        self.transitions: list[Published] = []
        self.struck: Counter[Fault] = Counter()
        self.trace: list[tuple[float, str, str]] = []
        self.failures: list[str] = []
        self.healed = False
        self.rewinds = 0
        self.outage_until = 0.0
        self.early: list[str] = []
        self._failing_over: str | None = None
        self.database.moved = self._judge_move
        self.skew_seconds = 0.0
        self.listeners: list[asyncio.Event] = []

    @property
    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.time + self.skew_seconds)

    def tell(self, who: str, what: str) -> None:
        self.trace.append((self.time, who, what))

    def strikes(self, fault: Fault, chance: float) -> bool:
        """Whether `fault` happens here and now; counted if it does."""
        if self.healed or fault not in self.shape.faults or self.rng.random() >= chance:
            return False
        self.struck[fault] += 1
        return True

    async def latency(self) -> None:
        """How long anything takes that leaves a process: mostly the pace, at times much longer."""
        slow = 1 if self.healed or self.rng.random() < 0.9 else 30
        await asyncio.sleep(self.rng.expovariate(1 / self.shape.pace_seconds) * slow)

    def trouble_database(self, client: str, statement: str) -> None:
        """Raises what a client of the database sees of its faults."""
        if not self.healed and self.time < self.outage_until:
            raise ConnectionLostError("the database is down")
        if statement == "commit" and self._failing_over is None and self.strikes(Fault.FAILOVER, 0.05):
            self._failing_over = client
            self.back_up()
        elif statement == "committed" and self._failing_over == client:
            asyncio.get_running_loop().call_later(self.rng.expovariate(5), self._fail_over)
            raise ConnectionLostError("no reply to the commit")
        elif statement == "committed":
            if self.strikes(Fault.LOST_REPLY, 0.05):
                raise ConnectionLostError("no reply to the commit")
        elif self.strikes(Fault.LOST_REQUEST, 0.01):
            raise ConnectionLostError("connection lost")
        if statement == "update" and self.strikes(Fault.TOO_SLOW, 0.02):
            raise TooSlowError("statement timeout")

    def append(self, key: bytes | None, value: bytes | None) -> None:
        """A producer's record, on the partition of its key, or misplaced."""
        home = sum(key or b"") % self.shape.partitions
        if self.shape.partitions > 1 and self.strikes(Fault.MISPLACED, 0.02):
            home = (home + self.rng.randrange(1, self.shape.partitions)) % self.shape.partitions
        gap = self.rng.randint(1, 3) if self.strikes(Fault.GAP, 0.05) else 0
        offset = self.end(home) + gap
        self.log[home].append(Record(TOPIC, home, offset, round(self.now().timestamp() * 1000), key, value))
        if event := event_in(self.log[home][-1]):
            self.published.add(key_of(event))
        self.tell("log", f"[{home}] {offset}: {value!r}")
        for news in self.listeners:
            news.set()

    def end(self, partition: int) -> int:
        return self.log[partition][-1].offset + 1 if self.log[partition] else 0

    async def dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """Some of them may have been sent when it fails."""
        for letter in letters:
            await self.latency()
            fails = self.strikes(Fault.NO_DEAD_LETTERS, 0.3)
            if fails and self.rng.random() < 0.5:
                raise UnavailableError("the dead-letter topic is away")
            record = letter.record
            self.letters.append(Letter(record.topic, record.partition, record.offset, record.key, record.value))
            self.tell("dead letter", f"[{record.partition}] {record.offset}")
            if fails:
                raise UnavailableError("no acknowledgement of the dead letter")

    async def publish_transition(self, value: bytes) -> None:
        """It may have been published when this fails."""
        fails = self.strikes(Fault.NOT_PUBLISHED, 0.1)
        if not fails or self.rng.random() < 0.5:
            event = json.loads(value)
            self.transitions.append(Published(event["subject"], event["data"]["version"], event["id"]))
            self.tell("transition", f"{event['subject']} v{event['data']['version']} {event['id']}")
        if fails:
            raise UnavailableError("no acknowledgement of the transition")

    def _judge_move(self, partition: Partition, before: int, after: int) -> None:
        """Dead letters come before the offset."""
        dead_lettered = {(letter.partition, letter.offset) for letter in self.letters}
        for record in self.log[partition.number]:
            poisonous = (record.key, record.value) in self.ledger.poison
            if before <= record.offset < after and poisonous and (partition.number, record.offset) not in dead_lettered:
                self.early.append(f"{partition.topic}[{partition.number}] {record.offset}")

    def _fail_over(self) -> None:
        self._failing_over = None
        if not self.healed:
            self.rewind()

    def back_up(self) -> None:
        self.backup = self.database.copied()

    def rewind(self) -> None:
        """The database goes back to its backup, as at a failover to a standby that lags behind."""
        self.database.restore(self.backup)
        self.rewinds += 1
        there = {(key, row.source, row.event_id) for key, rows in self.database.rows.items() for row, _ in rows}
        gone = self.ledger.written - there - self.published
        self.ledger.events -= gone
        self.ledger.unsure |= gone
        self.tell("database", "rewound")

    def evidence(self) -> Evidence:
        return Evidence(
            conversations=dict(self.database.conversations),
            histories={key: list(rows) for key, rows in self.database.rows.items()},
            log=[record for records in self.log.values() for record in records],
            letters=list(self.letters),
            offsets={(p.topic, p.number): stored.next_offset for p, stored in self.database.offsets.items()},
            moves=[Move(p.topic, p.number, before, after) for p, before, after in self.database.trail],
            published=list(self.transitions),
            rewinds=self.rewinds,
        )


def _refuses(row: HistoryRow) -> bool:
    return row.actor == REFUSED
