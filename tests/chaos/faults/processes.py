"""Processes are killed, frozen, stopped, stalled, and given another clock."""

import asyncio
import signal

from tests.chaos.deployment import Member
from tests.chaos.failpoints import STALL_SECONDS, VARIABLE
from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.rig import SESSION_SECONDS, Rig
from tests.stack.process import DevstackError
from tests.stack.programs import faketime_library, missing

ARMED_SECONDS = 30.0
"""How long an armed process may take to reach its failpoint."""
DRAIN_SECONDS = 25.0
ZOMBIE_SECONDS = 3 * SESSION_SECONDS


def any_member(rig: Rig) -> Member:
    return rig.rng.choice([member for deployment in rig.deployments for member in deployment.members])


def any_replica(rig: Rig) -> Member:
    return rig.rng.choice(rig.replicas.members)


@fault(1, "a process is killed", Track.PROCESSES, weight=4)
async def kill(rig: Rig) -> None:
    await any_member(rig).end(signal.SIGKILL)


@fault(1, "a replica is killed within a transaction", Track.PROCESSES, weight=2)
async def kill_in_transaction(rig: Rig) -> None:
    await _reach(rig, any_replica(rig), "committing:kill")


@fault(2, "a replica is killed between PostgreSQL's commit and Kafka's", Track.PROCESSES, weight=2)
async def kill_after_commit(rig: Rig) -> None:
    await _reach(rig, any_replica(rig), "committed:kill")


async def _reach(rig: Rig, member: Member, failpoint: str) -> None:
    await member.replace(**{VARIABLE: f"{failpoint}:{rig.rng.randint(2, 20)}"})
    rig.expect(await member.until_ended(ARMED_SECONDS), f"the failpoint {failpoint} is reached")


@fault(11, "a replica is frozen for three session timeouts", Track.PROCESSES, weight=1)
async def zombie(rig: Rig) -> None:
    await any_replica(rig).freeze(ZOMBIE_SECONDS)


@fault(11, "a replica freezes within a transaction for three session timeouts", Track.PROCESSES, weight=1)
async def zombie_in_transaction(rig: Rig) -> None:
    member = any_replica(rig)
    await member.replace(**{VARIABLE: f"committing:freeze:{rig.rng.randint(2, 20)}"})
    rig.expect(await member.until_frozen(ARMED_SECONDS), "the failpoint committing:freeze is reached")
    await asyncio.sleep(ZOMBIE_SECONDS)
    member.replica.send(signal.SIGCONT)


@fault(18, "a process is told to stop", Track.PROCESSES, weight=4)
async def terminate(rig: Rig) -> None:
    member = any_member(rig)
    async with rig.deadline(DRAIN_SECONDS, "SIGTERM ends a process within its drain limit"):
        await member.end(signal.SIGTERM)


@fault(18, "a process is told to stop twice", Track.PROCESSES)
async def terminate_twice(rig: Rig) -> None:
    member = any_member(rig)
    async with rig.deadline(DRAIN_SECONDS, "a second SIGTERM ends a process"):
        ending = asyncio.create_task(member.end(signal.SIGTERM))
        await asyncio.sleep(rig.rng.random() / 4)
        member.replica.send(signal.SIGTERM)
        await ending


@fault(19, "every replica is restarted, one after the other", Track.PROCESSES)
async def rolling_restart(rig: Rig) -> None:
    for member in rig.replicas.members:
        await member.end(signal.SIGTERM)
        await member.until_ready(ARMED_SECONDS)


@fault(24, "the event loop of a replica stands still for two session timeouts", Track.PROCESSES)
async def stalled_loop(rig: Rig) -> None:
    member = any_replica(rig)
    await member.replace(**{VARIABLE: f"committing:stall:{rig.rng.randint(2, 20)}"})
    await asyncio.sleep(2 * STALL_SECONDS)


@fault(17, "the clock of a replica is an hour wrong", Track.PROCESSES)
async def clock_skew(rig: Rig) -> None:
    member = any_replica(rig)
    if (library := faketime_library()) is None:
        raise DevstackError(str(missing("faketime")))
    environment = {"LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    await member.replace(**environment, FAKETIME=rig.rng.choice(("+1h", "-1h")))
    rig.expect(await member.until_ready(ARMED_SECONDS), "a replica with a wrong clock is ready")
    await asyncio.sleep(SESSION_SECONDS)
    await member.end(signal.SIGTERM)
