"""PostgreSQL restarts, fails over, fills its disk, becomes slow, loses connections at the worst moment."""

import asyncio
import signal

import asyncpg

from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.rig import CALLERS, SESSION_SECONDS, Rig
from tests.chaos.sender import Caller
from tests.demo.writers import lock_holder
from tests.stack.small_disk import SmallDisk

TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"""
STORM_WRITERS = 8
STORM_ROWS = 10
STORM_SECONDS = 6.0


@fault(6, "PostgreSQL is restarted: in good order, at once, or after a crash", Track.DATABASE, weight=6)
async def postgres_restart(rig: Rig) -> None:
    number = rig.rng.choice((signal.SIGINT, signal.SIGQUIT, signal.SIGKILL))
    await rig.postgres.restart(number)


@fault(6, "connections are ended at the server, one every 200 ms", Track.DATABASE)
async def backends_terminated(rig: Rig) -> None:
    for _ in range(20):
        await rig.fetch(TERMINATE)
        await asyncio.sleep(0.2)


@fault(7, "a standby that lacks the last commits becomes the primary", Track.DATABASE, weight=1)
async def failover(rig: Rig) -> None:
    rig.expect(await rig.fail_over() > 0, "commits are lost")


@fault(8, "PostgreSQL's disk is full", Track.DATABASE, weight=0.5, needs=SmallDisk.missing)
async def disk_full(rig: Rig) -> None:
    await asyncio.to_thread(rig.postgres.fill_disk)
    try:
        rig.expect(await _refuses_to_grow(rig), "PostgreSQL refuses to write, or ends, for lack of space")
        await asyncio.sleep(SESSION_SECONDS)
    finally:
        await rig.postgres.free_disk()


async def _refuses_to_grow(rig: Rig) -> bool:
    """Whether a table of some megabytes finds no room; a full WAL ends the server."""
    try:
        await rig.fetch("CREATE TEMPORARY TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 50000)")
    except (asyncpg.DiskFullError, asyncpg.PostgresConnectionError, asyncpg.CannotConnectNowError, OSError):
        return True
    return False


@fault(3, "the reply to a COMMIT is lost", Track.DATABASE, weight=2)
async def commit_reply_lost(rig: Rig) -> None:
    await _reset_commits(rig, forward=True)


@fault(9, "the connection is lost at a COMMIT that does not arrive", Track.DATABASE)
async def commit_lost(rig: Rig) -> None:
    await _reset_commits(rig, forward=False)


async def _reset_commits(rig: Rig, *, forward: bool) -> None:
    proxy = rig.postgres.proxy
    before = proxy.commits_reset
    proxy.reset_at_commit(forward=forward, every=3)
    await asyncio.sleep(SESSION_SECONDS)
    proxy.heal()
    rig.expect(proxy.commits_reset > before, "commits are reset")


@fault(10, "PostgreSQL answers slowly", Track.DATABASE)
async def slow_database(rig: Rig) -> None:
    rig.postgres.proxy.latency_seconds = rig.rng.uniform(0.05, 0.5)
    try:
        await asyncio.sleep(SESSION_SECONDS)
    finally:
        rig.postgres.proxy.heal()


@fault(10, "PostgreSQL's disk is slow to flush", Track.DATABASE)
async def slow_fsync(rig: Rig) -> None:
    await rig.postgres.slow_fsync(0.1)
    await asyncio.sleep(SESSION_SECONDS)
    await rig.postgres.heal_fsync()


@fault(9, "PostgreSQL is frozen", Track.DATABASE)
async def postgres_frozen(rig: Rig) -> None:
    rig.postgres.freeze()
    await asyncio.sleep(rig.rng.uniform(1, 2 * SESSION_SECONDS))
    rig.postgres.thaw()


@fault(22, "eight outside writers and a lock holder on ten conversations", Track.DATABASE)
async def contention(rig: Rig) -> None:
    keys = rig.traffic.cold[:STORM_ROWS]
    callers = [
        Caller(f"storm-{rig.strikes}-{n}", rig.callers_traffic(CALLERS + n), rig.written, rate=50)
        for n in range(STORM_WRITERS)
    ]
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for caller in callers:
            tasks.create_task(caller.run(rig.proxied_database, keys))
        holder = tasks.create_task(lock_holder(rig.database, keys, stop))
        await asyncio.sleep(STORM_SECONDS)
        stop.set()
        for caller in callers:
            caller.stop()
        await holder
