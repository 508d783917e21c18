"""One fault, or a seeded mix of them, and a verdict on what is left."""

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from random import Random

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.faults.catalogue import OvertakenError, Strike, Track
from tests.chaos.memory import Memory, watched
from tests.chaos.rig import Plan, Rig, Services, prepared
from tests.chaos.verdict import Recovery, judge, recovery, rest
from tests.checker.ledger import Verdict
from tests.stack.process import DevstackError, say

CALM_SECONDS = 2.0
"""Of traffic without a fault, before and after."""
READY_SECONDS = 90.0
PAUSE_SECONDS = 1.5
TRACKS = (*Track, Track.PROCESSES)
"""Processes end twice as often as anything else happens."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a storm."""

    seed: int
    verdicts: list[Verdict]
    struck: Counter[str]
    sent: int
    written: int
    recovery: Recovery
    crashes: list[tuple[str, int]]
    memory: Memory

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


async def run_storm(found: Services, plan: Plan, strike: Strike) -> Outcome:
    """Traffic, the faults, calm, and the verdict. Nobody is helped after the last fault."""
    async with prepared(found, plan) as rig:
        for deployment in rig.deployments:
            await deployment.start()
        if not await rig.replicas.until_ready(READY_SECONDS):
            raise DevstackError(f"the replicas are not ready after {READY_SECONDS:.0f} s: see {rig.keep_logs()}")
        async with rig.at_work(), watched(rig.replicas.members) as watch:
            await asyncio.sleep(CALM_SECONDS)
            await strike(rig)
            recovered = await recovery(rig)
            await asyncio.sleep(CALM_SECONDS)
        left = await rest(rig)
        await rig.read_pages()
        codes = [code for deployment in rig.deployments for code in await deployment.stop()]
        verdicts = await judge(rig, recovered, left, codes)
        if not all(verdict.holds for verdict in verdicts):
            say(f"the logs: {rig.keep_logs()}")
        written = len(rig.written.recent)
        return Outcome(
            plan.seed, verdicts, +rig.struck, rig.sender.sent, written, recovered, rig.crashes, watch.result()
        )


def scenario(fault: Fault) -> Strike:
    async def strike(rig: Rig) -> None:
        rig.struck[fault.name] += 1
        await fault.strike(rig)

    return strike


def mix(seconds: float) -> Strike:
    """Faults of every track, one after the other in each; those of different tracks overlap."""

    async def strike(rig: Rig) -> None:
        ending = asyncio.get_running_loop().time() + seconds
        async with asyncio.TaskGroup() as tasks:
            for number, track in enumerate(TRACKS):
                tasks.create_task(_track(rig, number, track, ending))

    return strike


async def _track(rig: Rig, number: int, track: Track, ending: float) -> None:
    rng = Random(f"{rig.plan.seed} {number} {track}")
    faults = [fault for fault in FAULTS.values() if fault.track is track and fault.weight and not fault.needs()]
    weights = [fault.weight for fault in faults]
    while asyncio.get_running_loop().time() < ending:
        await asyncio.sleep(rng.expovariate(1 / PAUSE_SECONDS))
        (fault,) = rng.choices(faults, weights)
        rig.struck[fault.name] += 1
        try:
            await fault.strike(rig)
        except OvertakenError:
            rig.struck[fault.name] -= 1


def plan_of(fault: Fault, seed: int) -> Plan:
    """How the scenario of one fault is laid out."""
    if why := fault.needs():
        raise DevstackError(f"{fault.name}: {why}")
    plan = Plan(seed, dead_letters_on_one_broker=fault.dead_letters_on_one_broker)
    return replace(plan, mix=fault.mix) if fault.mix else plan
