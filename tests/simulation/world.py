"""The world of one schedule: the log, the dead letters, the database, the clock, and the faults that strike them."""

import asyncio
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random

from consumer.errors import ConnectionLostError, ContentionError, TooSlowError, UnavailableError
from consumer.kafka.placement import home_of
from consumer.kafka.producer import FACTS
from consumer.lifecycle.model import HistoryRow
from consumer.offsets import Partition, StoredOffset
from consumer.records import Record
from tests.checker.ledger import Evidence, Ledger, Letter, Move, Published, key_of
from tests.checker.verdicts import event_in
from tests.memory_database import MemoryDatabase, UnansweredCommitError
from tests.memory_kafka.cluster import Headers
from tests.simulation.topic import TOPIC, Cluster, PartitionRecords, Places, places

EPOCH = datetime(2026, 3, 1, tzinfo=UTC)
GROUP = "group"
REFUSED = "agent-whom-the-database-refuses"
WAIT_FOR_ROWS = ("guard", "lock", "update", "write", "set offset")
"""Statements in which PostgreSQL may find a deadlock."""


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
    COMMIT_TIMEOUT = "timeout at commit"
    DEADLOCK = "deadlock"
    SERIALIZATION = "serialization failure"
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
    NO_KAFKA = "Kafka away"
    RETENTION = "retention past the offset"
    OTHER_CLUSTER = "another cluster"


@dataclass(frozen=True, slots=True)
class Shape:
    """How a schedule is laid out: drawn from its seed, small worlds and large ones."""

    replicas: int
    partitions: int
    other_writers: int
    conversations: int
    events: int
    max_batch: int
    few: int
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
            few=rng.choice((-1, 2, 100)),
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
        self.backup: MemoryDatabase | None = None
        self.log: dict[int, list[Record]] = {number: [] for number in range(self.shape.partitions)}
        self.clusters = [Cluster("cluster-0", {number: PartitionRecords() for number in self.log})]
        self.given_up: Places = set()
        self.offsets_set = 0
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
        self.database.was_set = self._note_given_up
        self.skew_seconds = 0.0

    @property
    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.time + self.skew_seconds)

    @property
    def resets(self) -> tuple[int, int]:
        """How often offsets were changed by others than their owners."""
        return self.rewinds, self.offsets_set

    def heal(self) -> None:
        self.healed = True
        self.tell("fault", "no more faults")
        for cluster in self.clusters:
            cluster.brokers.heal()

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
        self._contend(statement)
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
        if statement in ("update", "write") and self.strikes(Fault.TOO_SLOW, 0.02):
            raise TooSlowError("statement timeout")

    def _contend(self, statement: str) -> None:
        if statement in WAIT_FOR_ROWS and self.strikes(Fault.DEADLOCK, 0.02):
            raise ContentionError("deadlock")
        if statement != "committed" and self.strikes(Fault.SERIALIZATION, 0.01):
            raise ContentionError("serialization")
        if statement == "commit" and self.strikes(Fault.COMMIT_TIMEOUT, 0.02):
            raise UnansweredCommitError(self.rng.choice((0, 0.5, 3)), takes_effect=self.rng.random() < 0.7)

    @property
    def kafka(self) -> Cluster:
        """The cluster of now."""
        return self.clusters[-1]

    @property
    def kafka_is_away(self) -> bool:
        return not self.kafka.brokers.is_up

    def reach_kafka(self) -> Cluster:
        """Raises `UnavailableError` while it is away."""
        if self.kafka_is_away:
            raise UnavailableError("the brokers are away")
        return self.kafka

    def append(self, key: bytes | None, value: bytes | None) -> None:
        """A producer's record, on the partition of its key, or misplaced."""
        home = home_of(key, self.shape.partitions) if key else 0
        if self.shape.partitions > 1 and self.strikes(Fault.MISPLACED, 0.02):
            home = (home + self.rng.randrange(1, self.shape.partitions)) % self.shape.partitions
        gap = self.rng.randint(1, 3) if self.strikes(Fault.GAP, 0.05) else 0
        at = round(self.now().timestamp() * 1000)
        original = Record(TOPIC, home, self.original_end(home) + gap, at, key, value)
        self.log[home].append(original)
        record = self.kafka.append(home, original, gap)
        if event := event_in(record):
            self.published.add(key_of(event))
        self.tell("log", f"[{home}] {record.offset}: {value!r}")

    @property
    def is_read(self) -> bool:
        """Whether every partition is applied to its end, in the cluster of now."""
        stored = {place.number: (o.cluster_id, o.next_offset) for place, o in self.database.offsets.items()}
        return all(stored.get(n) == (self.kafka.name, p.end) for n, p in self.kafka.partitions.items())

    def original_end(self, partition: int) -> int:
        return self.log[partition][-1].offset + 1 if self.log[partition] else 0

    def original_offset(self, partition: int, stored: StoredOffset) -> int:
        """Where a stored offset is in the numbering of the first cluster."""
        cluster = next(cluster for cluster in self.clusters if cluster.name == stored.cluster_id)
        return cluster.partitions[partition].original_offset(stored.next_offset)

    def needed_from(self, partition: Partition) -> int:
        """The original offset from which on records may still be asked for, also after a rewind."""
        states = [self.database, *([self.backup] if self.backup else ())]
        stored = [state.offsets.get(partition) for state in states]
        return min(0 if offset is None else self.original_offset(partition.number, offset) for offset in stored)

    def move_to_another_cluster(self) -> None:
        """The topic is restored elsewhere, under other offsets."""
        copies = {
            number: records.copied(self.rng, self.needed_from(Partition(GROUP, TOPIC, number)))
            for number, records in self.kafka.partitions.items()
        }
        self.clusters.append(Cluster(f"cluster-{len(self.clusters)}", copies))
        self.tell("Kafka", f"is {self.kafka.name} now")

    def note_dead_letter(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        """A record that never lay in the log keeps its place: the checker finds another record there, or none."""
        facts = dict(zip(FACTS, (text.decode() for _, text in headers[-len(FACTS) :]), strict=True))
        numbers = int(facts["partition"]), int(facts["offset"]), int(facts["timestamp"])
        record = Record(facts["topic"], *numbers, key, value)
        found = [original for cluster in self.clusters if (original := cluster.original_of(record))]
        original = found[-1] if found else record
        self.letters.append(Letter(record.topic, record.partition, original.offset, record.key, record.value))
        self.tell("dead letter", f"[{record.partition}] {record.offset}")

    async def publish_transition(self, value: bytes) -> None:
        """It may have been published when this fails."""
        self.reach_kafka()
        fails = self.strikes(Fault.NOT_PUBLISHED, 0.1)
        if not fails or self.rng.random() < 0.5:
            event = json.loads(value)
            self.transitions.append(Published(event["subject"], event["data"]["version"], event["id"]))
            self.tell("transition", f"{event['subject']} v{event['data']['version']} {event['id']}")
        if fails:
            raise UnavailableError("no acknowledgement of the transition")

    def _judge_move(self, partition: Partition, before: int, after: int) -> None:
        """Dead letters come before the offset."""
        stored = self.database.offsets[partition].cluster_id
        records = next(cluster for cluster in self.clusters if cluster.name == stored).partitions[partition.number]
        dead_lettered = {(letter.partition, letter.offset) for letter in self.letters}
        for record in records.between(before, after):
            poisonous = (record.key, record.value) in self.ledger.poison
            if poisonous and (partition.number, record.offset) not in dead_lettered:
                self.early.append(f"{partition.topic}[{partition.number}] {record.offset}")

    def _note_given_up(self, partition: Partition, before: StoredOffset | None, after: StoredOffset) -> None:
        """Whoever sets an offset gives up what was deleted in between, and nothing else."""
        number = partition.number
        self.offsets_set += 1
        first = self.original_offset(number, before) if before else 0
        passed = [r for r in self.log[number] if first <= r.offset < self.original_offset(number, after)]
        self.given_up |= places(passed) - places(self.kafka.partitions[number].kept())

    def _fail_over(self) -> None:
        self._failing_over = None
        if not self.healed:
            self.rewind()

    def back_up(self) -> None:
        self.backup = self.database.copied()

    def rewind(self) -> None:
        """The database goes back to its backup, as at a failover to a standby that lags behind."""
        assert self.backup is not None
        self.database.restore(self.backup)
        self.rewinds += 1
        there = {(key, row.source, row.event_id) for key, rows in self.database.rows.items() for row, _ in rows}
        undone = self.ledger.written - there
        self.ledger.written -= undone
        self.ledger.unsure |= undone
        self.ledger.events -= undone - self.published
        self.tell("database", "rewound")

    def evidence(self) -> Evidence:
        return Evidence(
            conversations=dict(self.database.conversations),
            histories={key: list(rows) for key, rows in self.database.rows.items()},
            log=[record for records in self.log.values() for record in records],
            letters=list(self.letters),
            offsets={(p.topic, p.number): self.original_offset(p.number, o) for p, o in self.database.offsets.items()},
            moves=[Move(p.topic, p.number, before, after) for p, before, after in self.database.trail],
            published=list(self.transitions),
            rewinds=self.rewinds,
            given_up=frozenset(self.given_up),
        )


def _refuses(row: HistoryRow) -> bool:
    return row.actor == REFUSED
