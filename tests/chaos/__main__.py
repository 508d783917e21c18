"""`make chaos`: real processes, three brokers, a primary with its standby, and faults; a verdict at the end."""

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, NotRequired, TypedDict

import typer

from tests.chaos.faults import FAULTS
from tests.chaos.memory import Memory
from tests.chaos.mutation import find_all
from tests.chaos.rig import Plan, Services, services
from tests.chaos.storm import Outcome, mix, plan_of, run_storm, scenario
from tests.stack.process import DevstackError, say

ROUND_SECONDS = 60.0
ALL = "all"
QUICK = ("kill-in-transaction", "failover", "disk-full", "retention", "another-cluster")


def _scenario(name: str | None) -> str | None:
    if name and name not in (ALL, *FAULTS):
        width = max(map(len, FAULTS))
        known = "\n".join(f"  {fault.name:{width}}  {fault.what}" for fault in FAULTS.values())
        raise typer.BadParameter(f"{name!r} is no scenario; there are:\n{known}")
    return name


def main(
    only: Annotated[
        str | None,
        typer.Option("--scenario", callback=_scenario, help="This fault alone, or `all` of them, one by one."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses traffic and faults.")] = 1,
    minutes: Annotated[float, typer.Option(min=0.1, help="How long a mix of all faults goes on.")] = 5.0,
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 300.0,
    quick: Annotated[bool, typer.Option("--quick", help="A few faults, each alone.")] = False,
    mutation: Annotated[
        bool, typer.Option("--mutation", help="Plant bugs into the replicas: each must be found.")
    ] = False,
    ledger: Annotated[
        Path | None, typer.Option(help="Each round is added to this file; one that is there goes on after its last.")
    ] = None,
) -> None:
    """One fault, or a seeded mix in rounds of a minute. Exit code 1 if anything was lost, or came twice."""
    try:
        holds = asyncio.run(_run(only, seed, minutes, rate, ledger, quick=quick, mutation=mutation))
    except* DevstackError as errors:
        for error in errors.exceptions:
            say(f"error: {error}")
        sys.exit(1)
    raise typer.Exit(0 if holds else 1)


async def _run(
    only: str | None, seed: int, minutes: float, rate: float, ledger: Path | None, *, quick: bool, mutation: bool
) -> bool:
    async with services() as found:
        if mutation:
            return await find_all(found, seed)
        if quick:
            return await _alone(found, QUICK, seed)
        if only:
            return await _alone(found, FAULTS if only == ALL else [only], seed)
        return await _rounds(found, seed, minutes, rate, ledger)


async def _alone(found: Services, names: Iterable[str], seed: int) -> bool:
    """Each by itself, in the order of the catalogue."""
    held = []
    for name in names:
        outcome = await run_storm(found, plan_of(FAULTS[name], seed), scenario(FAULTS[name]))
        _print(name, outcome)
        held.append(outcome.holds)
    return all(held)


class Entry(TypedDict):
    """A line of the ledger: one round."""

    seed: int
    sent: int
    written: int
    struck: dict[str, int]
    recovery_seconds: float
    crashes: list[tuple[str, int]]
    broken: dict[str, int]
    memory: NotRequired[dict[str, Sequence[int]]]
    """What each replica took at most in the first half, and in the second, in MiB; older ledgers have none."""


async def _rounds(found: Services, seed: int, minutes: float, rate: float, ledger: Path | None) -> bool:
    done = _read(ledger)
    number, ending, holds = len(done), time.monotonic() + 60 * minutes, True
    while time.monotonic() < ending:
        seconds = min(ROUND_SECONDS, ending - time.monotonic())
        outcome = await run_storm(found, Plan(1000 * seed + number, rate=rate), mix(seconds))
        _print(f"round {number}, seed {outcome.seed}", outcome)
        done.append(_entry(outcome))
        _append(ledger, done[-1])
        number, holds = number + 1, holds and outcome.holds
    _print_total(done)
    return holds


def _read(ledger: Path | None) -> list[Entry]:
    lines = ledger.read_text().splitlines() if ledger and ledger.exists() else []
    return [json.loads(line) for line in lines]


def _append(ledger: Path | None, entry: Entry) -> None:
    if ledger:
        with ledger.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _entry(outcome: Outcome) -> Entry:
    return {
        "seed": outcome.seed,
        "sent": outcome.sent,
        "written": outcome.written,
        "struck": dict(outcome.struck),
        "recovery_seconds": round(outcome.recovery.seconds, 1),
        "crashes": outcome.crashes,
        "memory": asdict(outcome.memory),
        "broken": {verdict.invariant: len(verdict.violations) for verdict in outcome.verdicts if not verdict.holds},
    }


def _print(what: str, outcome: Outcome) -> None:
    looked_at = sum(verdict.looked_at for verdict in outcome.verdicts)
    broken = [verdict for verdict in outcome.verdicts if not verdict.holds]
    faults = ", ".join(f"{count} {name}" for name, count in sorted(outcome.struck.items()))
    sys.stdout.write(
        f"{what}: {outcome.sent:,} events sent, {outcome.written:,} written beside, {faults}; "
        f"recovered in {outcome.recovery.seconds:.1f} s from {outcome.recovery.records:,} behind; "
        f"memory of a replica {outcome.memory}; "
        f"{len(outcome.verdicts) - len(broken)} of {len(outcome.verdicts)} invariants held, {looked_at:,} facts\n"
    )
    for verdict in broken:
        sys.stdout.write(f"  BROKEN {verdict.invariant}, {len(verdict.violations)} times: {verdict.violations[:3]}\n")
        for line in verdict.story:
            sys.stdout.write(f"    {line}\n")
    if outcome.crashes:
        sys.stdout.write(f"  ended by themselves: {outcome.crashes}\n")
    sys.stdout.flush()


def _print_total(rounds: list[Entry]) -> None:
    struck: Counter[str] = Counter()
    for one in rounds:
        struck.update(one["struck"])
    sent = sum(one["sent"] for one in rounds)
    broken = sum(bool(one["broken"]) for one in rounds)
    sys.stdout.write(f"{len(rounds)} rounds, {sent:,} events, {broken} rounds broken\n")
    memory = [entry["memory"] for entry in rounds if "memory" in entry]
    first, second = ([mib for each in memory for mib in each[half]] for half in ("first", "second"))
    sys.stdout.write(f"memory of a replica, at most in first and second halves of rounds: {Memory(first, second)}\n")
    for name, count in struck.most_common():
        sys.stdout.write(f"  {count:5} {name}\n")


if __name__ == "__main__":
    typer.run(main)
