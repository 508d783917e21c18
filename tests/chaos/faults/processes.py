"""Processes are killed, frozen, stopped, stalled, and given another clock."""

import asyncio
import signal
import time

from tests.chaos.deployment import Member
from tests.chaos.failpoints import REACHED, STALL_SECONDS, VARIABLE
from tests.chaos.faults.catalogue import Track, fault, took_place
from tests.chaos.rig import SESSION_SECONDS, Rig
from tests.chaos.waiting import Condition, within
from tests.stack.programs import faketime_library, missing
from tests.stack.replica import Replica

ARMED_SECONDS = 30.0
"""How long an armed process may take to reach its failpoint."""
DRAIN_SECONDS = 25.0
HOUR = 3600
ZOMBIE_SECONDS = 3 * SESSION_SECONDS


@fault(1, "a process is killed", Track.PROCESSES, weight=15)
async def kill(rig: Rig) -> None:
    async with rig.any_member() as member:
        await member.end(signal.SIGKILL)


@fault(1, "a replica is killed within a transaction", Track.PROCESSES, weight=2)
async def kill_in_transaction(rig: Rig) -> None:
    async with rig.any_replica() as member:
        await _reach(rig, member, "committing:kill")


@fault(2, "a replica is killed between PostgreSQL's commit and Kafka's", Track.PROCESSES, weight=2)
async def kill_after_commit(rig: Rig) -> None:
    async with rig.any_replica() as member:
        await _reach(rig, member, "committed:kill")


async def _reach(rig: Rig, member: Member, failpoint: str) -> None:
    armed = await _arm(rig, member, failpoint)

    async def killed() -> bool:
        return armed.process.returncode == -signal.SIGKILL

    await _until_reached(rig, member, armed, failpoint, killed)


async def _arm(rig: Rig, member: Member, failpoint: str) -> Replica:
    return await member.replace(**{VARIABLE: f"{failpoint}:{rig.rng.randint(2, 20)}"})


async def _until_reached(rig: Rig, member: Member, armed: Replica, failpoint: str, reached: Condition) -> None:
    """Raises `OvertakenError` where other faults keep the process from getting there in time; it is ended then."""

    async def over() -> bool:
        return await reached() or armed.process.returncode is not None

    await within(ARMED_SECONDS, over)
    happened = await reached()
    if not happened and armed is member.replica:
        await member.end(signal.SIGTERM)
    took_place(rig, happened, f"the failpoint {failpoint} is reached")


@fault(11, "a replica is frozen for three session timeouts", Track.PAUSES, weight=3)
async def zombie(rig: Rig) -> None:
    async with rig.any_replica() as member:
        await member.freeze(ZOMBIE_SECONDS)


@fault(11, "a replica freezes within a transaction for three session timeouts", Track.PAUSES, weight=1)
async def zombie_in_transaction(rig: Rig) -> None:
    await _freeze(rig, "committing:freeze")


@fault(11, "a replica freezes between reading and writing for three session timeouts", Track.PAUSES, weight=1)
async def zombie_before_writing(rig: Rig) -> None:
    await _freeze(rig, "began:freeze")


async def _freeze(rig: Rig, failpoint: str) -> None:
    async with rig.any_replica() as member:
        armed = await _arm(rig, member, failpoint)

        async def frozen() -> bool:
            return armed.is_frozen

        await _until_reached(rig, member, armed, failpoint, frozen)
        await asyncio.sleep(ZOMBIE_SECONDS)
        armed.send(signal.SIGCONT)


@fault(18, "a process is told to stop", Track.PROCESSES, weight=15)
async def terminate(rig: Rig) -> None:
    async with (
        rig.any_member() as member,
        rig.deadline(DRAIN_SECONDS, "SIGTERM ends a process within its drain limit"),
    ):
        code = await member.end(signal.SIGTERM)
        rig.expect(code == 0 or rig.strikes > 1, f"SIGTERM ends a process with exit code 0, not {code}")


@fault(18, "a process is told to stop twice", Track.PROCESSES)
async def terminate_twice(rig: Rig) -> None:
    async with rig.any_member() as member, rig.deadline(DRAIN_SECONDS, "a second SIGTERM ends a process"):
        ending = asyncio.create_task(member.end(signal.SIGTERM))
        await asyncio.sleep(rig.rng.random() / 4)
        member.replica.send(signal.SIGTERM)
        await ending


@fault(19, "every replica is restarted, one after the other", Track.PROCESSES, weight=0.5)
async def rolling_restart(rig: Rig) -> None:
    for member in rig.replicas.members:
        await member.end(signal.SIGTERM)
        await member.until_ready(ARMED_SECONDS)


@fault(24, "the event loop of a replica stands still for two session timeouts", Track.PAUSES)
async def stalled_loop(rig: Rig) -> None:
    async with rig.any_replica() as member:
        before = member.count_in_log(REACHED)
        armed = await _arm(rig, member, "committing:stall")

        async def stalls() -> bool:
            return member.count_in_log(REACHED) > before

        await _until_reached(rig, member, armed, "committing:stall", stalls)
        await asyncio.sleep(STALL_SECONDS)


@fault(17, "the clock of a replica is an hour wrong", Track.PAUSES, needs=lambda: missing("faketime"))
async def clock_skew(rig: Rig) -> None:
    async with rig.any_replica() as member:
        environment = {"LD_PRELOAD": str(faketime_library()), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        armed = await member.replace(**environment, FAKETIME=rig.rng.choice(("+1h", "-1h")))

        async def ready() -> bool:
            return await armed.ready()

        in_time = await within(ARMED_SECONDS, ready)
        rig.expect(in_time or rig.strikes > 1, "a replica with a wrong clock is ready")
        if in_time:
            rig.expect(abs(await _clock_of(armed) - time.time()) > HOUR / 2, "the clock of the replica is wrong")
        await asyncio.sleep(SESSION_SECONDS)
        await member.end(signal.SIGTERM)


async def _clock_of(replica: Replica) -> float:
    return await replica.count("conversation_last_poll_timestamp_seconds")
