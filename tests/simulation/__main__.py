"""Plays schedules, tells the story of one, or plants bugs that the checker must find.

python -m tests.simulation --schedules 10000 --seed 0
python -m tests.simulation --replay 778
python -m tests.simulation --planted
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from multiprocessing import Pool

from rich.console import Console
from rich.table import Table

from consumer.observability.metrics import samples
from tests.simulation.planted import BUGS
from tests.simulation.processes import METRICS
from tests.simulation.schedule import Run, run
from tests.simulation.world import Fault, Shape

CHUNK = 25
AT_LEAST = 100
"""How often each kind of fault must have struck in a run of `FULL` schedules or more."""
FULL = 10_000
BUDGET = 5000
"""Schedules within which a bug must be found."""
console = Console(soft_wrap=True, highlight=False)


@dataclass(slots=True)
class Tally:
    """What came of some schedules."""

    schedules: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    broken: list[tuple[int, str, str]] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        self.schedules += other.schedules
        self.struck += other.struck
        self.reached += other.reached
        self.broken += other.broken


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many to play")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--replay", type=int, metavar="SEED", help="play one and tell its story")
    parser.add_argument("--planted", action="store_true", help="plant each bug; exit code 1 if one is not found")
    parser.add_argument("--bug", choices=BUGS, help="plant this bug")
    options = parser.parse_args()
    if options.replay is not None:
        return replay(options.replay, options.bug)
    if options.planted:
        return hunt()
    if options.schedules < 1:
        parser.error(f"--schedules {options.schedules}: should be 1 or more")
    return simulate(range(options.seed, options.seed + options.schedules), options.bug)


def simulate(seeds: range, bug: str | None) -> int:
    started, tally = time.monotonic(), Tally()
    for part in played(seeds, bug):
        tally.add(part)
        if console.is_terminal:
            console.print(f"{tally.schedules:,} of {len(seeds):,}", end="\r")
    report(tally)
    console.print(
        f"{tally.schedules:,} schedules from seed {seeds.start} in {time.monotonic() - started:.0f} s, "
        f"{len({seed for seed, _, _ in tally.broken})} broken"
    )
    rare = [fault for fault in Fault if tally.schedules >= FULL and tally.struck[fault] < AT_LEAST]
    for fault in rare:
        console.print(f"[red]too rare:[/] {fault}, {tally.struck[fault]} times, {AT_LEAST} are needed")
    for seed, invariant, violation in tally.broken[:10]:
        console.print(f"[red]seed {seed}:[/] {invariant}: {violation}", markup=True)
        console.print(f"  replay: python -m tests.simulation --replay {seed}")
    return 1 if tally.broken or rare else 0


def played(seeds: range, bug: str | None) -> Iterator[Tally]:
    """On all cores, in chunks."""
    chunks = [(seeds[i : i + CHUNK], bug) for i in range(0, len(seeds), CHUNK)]
    with Pool(os.cpu_count()) as pool:
        yield from pool.imap(play, chunks)


def play(chunk: tuple[range, str | None]) -> Tally:
    seeds, bug = chunk
    tally, before = Tally(schedules=len(seeds)), reached()
    with BUGS[bug]() if bug else nullcontext():
        for seed in seeds:
            done = run(seed)
            tally.struck.update({fault.value: times for fault, times in done.struck.items()})
            tally.broken += [(seed, verdict.invariant, verdict.violations[0]) for verdict in done.broken]
    tally.reached = reached() - before
    return tally


def reached() -> Counter[str]:
    """What the code under test has counted so far in this process."""
    counts = Counter[str]()
    for sample in samples(METRICS.registry):
        if sample.name.endswith("_total"):
            labels = "/".join(sample.labels[name] for name in ("outcome", "result", "reason") if name in sample.labels)
            counts[f"{sample.name.removeprefix('conversation_').removesuffix('_total')} {labels}".strip()] += int(
                sample.value
            )
    return counts


def report(tally: Tally) -> None:
    table = Table("fault", "times", "reached", "times")
    faults = [(fault.value, f"{tally.struck[fault.value]:,}") for fault in Fault]
    others = [(name, f"{times:,}") for name, times in sorted(tally.reached.items()) if times]
    for fault, other in zip_longest(faults, others, fillvalue=("", "")):
        table.add_row(*fault, *other)
    console.print(table)


def replay(seed: int, bug: str | None) -> int:
    """The whole story of a schedule; the same each time."""
    with BUGS[bug]() if bug else nullcontext():
        done = run(seed)
    for at, who, what in done.trace:
        console.print(f"{at:10.4f}  {who:12} {what}", markup=False)
    console.print(f"{Shape.of(seed)}", markup=False)
    tell(done)
    return 1 if done.broken else 0


def tell(done: Run) -> None:
    for verdict in done.broken:
        console.print(f"[red]BROKEN[/] {verdict.invariant}: {', '.join(verdict.violations)}")
        for line in verdict.story:
            console.print(f"    {line}", markup=False)
    if not done.broken:
        console.print(f"seed {done.seed}: every invariant holds")


def hunt() -> int:
    """Exit code 1 if a bug survives."""
    surviving = 0
    for bug in BUGS:
        seen, found = 0, None
        for part in played(range(BUDGET), bug):
            if found := next((broken for broken in part.broken if broken[1] != "nobody fails"), None):
                break
            seen += part.schedules
        surviving += found is None
        verdict = f"found by schedule {found[0]}: {found[1]}" if found else f"[red]SURVIVES {seen} schedules"
        console.print(f"{bug}: {verdict}")
    console.print(f"{len(BUGS) - surviving} of {len(BUGS)} planted bugs found")
    return 1 if surviving else 0


if __name__ == "__main__":
    sys.exit(main())
