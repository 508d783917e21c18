"""How much is measured, and how often."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """`events` of each run of ours. `rounds` of the contest and `repeats` of the conditions, whose medians count."""

    command: str
    parts: tuple[str, ...]
    replicas: tuple[int, ...]
    events: int
    rounds: int
    repeats: int
    latency_seconds: float
    grown: int
    backlog: int
    pruned: int
    outbox: int
    due: int
    idle_seconds: float


FULL = Plan(
    "make bench",
    ("contest", "latency", "skew", "contention", "memory", "growth", "prune", "outbox", "ticker"),
    replicas=(1, 2, 4),
    events=250_000,
    rounds=3,
    repeats=1,
    latency_seconds=20,
    grown=5_000_000,
    backlog=1_000_000,
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
    latency_seconds=5,
    grown=100_000,
    backlog=100_000,
    pruned=100_000,
    outbox=100_000,
    due=100_000,
    idle_seconds=20,
)
