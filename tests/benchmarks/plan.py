"""How much is measured, and how often."""

from dataclasses import dataclass

from tests.benchmarks.latency import Pace

LINGER = "CONSUMER_WORKER__LINGER"


@dataclass(frozen=True, slots=True)
class Plan:
    """`events` of each run of ours. `rounds` of the contest and `repeats` of the conditions, whose medians count.

    The fastest of the `paces` comes first, so that Kafka is warm for the others.
    """

    command: str
    parts: tuple[str, ...]
    replicas: tuple[int, ...]
    events: int
    rounds: int
    repeats: int
    paces: tuple[Pace, ...]
    latency_seconds: float
    grown: int
    tuned: int
    tuned_events: int
    backlog: int
    sessions: tuple[int, ...]
    pruned: int
    outbox: int
    due: int
    idle_seconds: float


FULL = Plan(
    "make bench",
    ("contest", "latency", "skew", "contention", "memory", "wide", "depth", "growth", "prune", "outbox", "ticker"),
    replicas=(1, 2, 4),
    events=250_000,
    rounds=3,
    repeats=1,
    paces=(
        *(Pace(per_second, partitions) for per_second in (2000, 500, 50) for partitions in (4, 1)),
        *(Pace(500, partitions, {LINGER: linger}) for partitions in (4, 1) for linger in ("5ms", "20ms", "100ms")),
    ),
    latency_seconds=20,
    grown=5_000_000,
    tuned=200_000,
    tuned_events=60_000,
    backlog=1_000_000,
    sessions=(10, 100, 500),
    pruned=1_000_000,
    outbox=1_000_000,
    due=1_000_000,
    idle_seconds=40,
)
QUICK = Plan(
    "make bench-quick",
    ("contest", "latency", "skew", "memory"),
    replicas=(1, 2),
    events=150_000,
    rounds=1,
    repeats=1,
    paces=(Pace(500, 4),),
    latency_seconds=5,
    grown=100_000,
    tuned=200_000,
    tuned_events=30_000,
    backlog=100_000,
    sessions=(10, 100),
    pruned=100_000,
    outbox=100_000,
    due=100_000,
    idle_seconds=20,
)
