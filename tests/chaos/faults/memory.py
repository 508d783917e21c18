"""Replicas run out of memory, and under the limit of production they do not."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml

from tests.chaos.deployment import Member
from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.memory import MEBIBYTE, resident_bytes
from tests.chaos.rig import Rig
from tests.chaos.waiting import within
from tests.stack.memory_limit import MemoryLimit

CONSUMER = Path(__file__).parents[3] / "deploy" / "k8s" / "base" / "consumer.yaml"
BACKLOG = 80_000
"""More than a replica buffers of all partitions together."""
AT_ONCE = 4000
READY_SECONDS = 60.0
CATCH_UP_SECONDS = 120.0


def production_limit_bytes() -> int:
    """The memory limit of a replica in deploy/k8s."""
    (deployment,) = (each for each in yaml.safe_load_all(CONSUMER.read_text()) if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    limit: str = container["resources"]["limits"]["memory"]
    return int(limit.removesuffix("Mi")) * MEBIBYTE


@fault(
    20,
    "a replica alone catches up with a backlog, under the memory limit of deploy/k8s",
    Track.TRAFFIC,
    weight=0,
    needs=MemoryLimit.missing,
)
async def memory_limit(rig: Rig) -> None:
    member, *others = rig.replicas.members
    async with _limited(member, production_limit_bytes()) as limit:
        await _backlog(rig)
        member.let_up()
        rig.expect(await member.until_ready(READY_SECONDS), "a replica with a backlog is ready")
        replica = member.replica
        rig.expect(limit.pids() == [replica.process.pid], "the replica is under the limit")
        rig.expect(await _catches_up(rig), "a replica alone catches up")
        rig.expect(limit.kills == 0, f"the kernel kills nobody for want of memory, not {limit.kills} processes")
        rig.expect(member.replica is replica, "the same process catches up from beginning to end")
        for other in others:
            other.let_up()


@fault(
    20,
    "a replica is killed for want of memory, more than once; then its limit is raised",
    Track.TRAFFIC,
    weight=0,
    needs=MemoryLimit.missing,
)
async def out_of_memory(rig: Rig) -> None:
    """The limit is what it takes without a backlog."""
    member, *others = rig.replicas.members
    async with _limited(member, resident_bytes(member.replica.process.pid)) as limit:
        await _backlog(rig)
        member.let_up()

        async def killed() -> bool:
            return limit.kills > 1

        rig.expect(await within(CATCH_UP_SECONDS, killed), "the kernel kills a replica for want of memory, twice")
        for other in others:
            other.let_up()


@asynccontextmanager
async def _limited(member: Member, limit_bytes: int) -> AsyncIterator[MemoryLimit]:
    """Within the block the member's processes are under the limit, each from its start."""
    limit = MemoryLimit(limit_bytes)
    member.enter = limit.enter
    try:
        yield limit
    finally:
        member.enter = ()
        member.let_up()
        await member.replace()
        limit.remove()


async def _backlog(rig: Rig) -> None:
    """Nobody reads while so much is sent; the replicas stay down."""
    for member in rig.replicas.members:
        member.hold_down()
    await asyncio.gather(*(member.end(signal.SIGTERM) for member in rig.replicas.members))
    for _ in range(BACKLOG // AT_ONCE):
        await rig.sender.send(rig.traffic.records(AT_ONCE))


async def _catches_up(rig: Rig) -> bool:
    ends = await rig.log_ends()
    return await within(CATCH_UP_SECONDS, lambda: rig.is_past(ends))
