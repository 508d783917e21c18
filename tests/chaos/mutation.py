"""The rig must turn red where replicas have a bug: `tests/checker/planted.py`, under faults that bring them out."""

import asyncio
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.chaos.faults import FAULTS
from tests.chaos.faults.catalogue import Strike
from tests.chaos.rig import REPLICAS, SESSION_SECONDS, Plan, Rig, Services
from tests.chaos.storm import run_storm, scenario
from tests.chaos.waiting import within
from tests.checker.planted import NO_PRIMARY_KEY, OF_THE_OTHERS
from tests.traffic import Mix

FROZEN_SECONDS = 60.0
TRIES = 3


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug, what brings it out, and the traffic that it takes."""

    bug: str
    strike: Strike
    rate: float = 300.0
    mix: Mix = field(default_factory=lambda: Mix(cold=400))
    settings: Mapping[str, str] = field(default_factory=dict)
    ddl: tuple[str, ...] = ()
    dead_letters_on_one_broker: bool = False
    found_by: tuple[str, ...] = ()
    """The invariants of which one must be broken; any other red proves nothing."""


async def wake_the_frozen(rig: Rig) -> None:
    """The replica that freezes itself within a transaction is woken once another has gone on in its place."""
    frozen = rig.replicas.members[0]
    replica = frozen.replica

    async def freezes() -> bool:
        return replica.is_frozen

    rig.expect(await within(FROZEN_SECONDS, freezes), "a replica freezes")
    await asyncio.sleep(3 * SESSION_SECONDS)
    replica.send(signal.SIGCONT)


SMALL_BATCHES = {"CONSUMER_WORKER__MAX_BATCH": "20"}
MUTANTS = (
    Mutant("version", scenario(FAULTS["contention"]), found_by=("versions 1..V without gap or repeat",)),
    Mutant("redecide", scenario(FAULTS["contention"]), found_by=("the history folds to the rows",)),
    Mutant("dedup", scenario(FAULTS["duplicates"]), ddl=(NO_PRIMARY_KEY,), found_by=("one effect per event",)),
    Mutant("guard", wake_the_frozen, found_by=("offsets never move backwards",)),
    Mutant(
        "kept-buffer",
        scenario(FAULTS["failover"]),
        rate=3000,
        settings=SMALL_BATCHES,
        found_by=("no event lost", "applied in the order of the log", "nothing before a stored offset is skipped"),
    ),
    Mutant(
        "unawaited",
        scenario(FAULTS["dead-letters-refused"]),
        dead_letters_on_one_broker=True,
        found_by=("all poison is in dead letters",),
    ),
)


async def find_all(found: Services, seed: int) -> bool:
    """Whether each was found, in a few tries at most."""
    results = [await _found(found, mutant, seed) for mutant in MUTANTS]
    return all(results)


async def _found(found: Services, mutant: Mutant, seed: int) -> bool:
    for number in range(TRIES):
        outcome = await run_storm(found, _plan(mutant, seed + number), mutant.strike)
        broken = [verdict for verdict in outcome.verdicts if not verdict.holds]
        for verdict in broken:
            if verdict.invariant not in mutant.found_by:
                sys.stdout.write(f"{mutant.bug}: {verdict.invariant} is broken, which proves nothing\n")
        if broken := [verdict for verdict in broken if verdict.invariant in mutant.found_by]:
            sys.stdout.write(f"{mutant.bug}: found by {broken[0].invariant}, {len(broken[0].violations)} times\n")
            sys.stdout.flush()
            return True
    sys.stdout.write(f"{mutant.bug}: NOT FOUND in {TRIES} storms\n")
    return False


def _plan(mutant: Mutant, seed: int) -> Plan:
    modules = {
        number: ("tests.checker.planted", OF_THE_OTHERS.get(mutant.bug, mutant.bug) if number else mutant.bug)
        for number in range(REPLICAS)
    }
    return Plan(seed, mutant.rate, mutant.mix, modules, mutant.settings, mutant.ddl, mutant.dead_letters_on_one_broker)
