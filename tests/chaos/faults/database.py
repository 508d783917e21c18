"""PostgreSQL restarts, fails over, fills its disk, becomes slow, loses connections at the worst moment."""

import asyncio
import signal
import time
from datetime import UTC, datetime, timedelta

import asyncpg

from tests.chaos.faults.catalogue import Track, fault, took_place
from tests.chaos.rig import CALLERS, SESSION_SECONDS, Rig
from tests.chaos.sender import Caller
from tests.chaos.waiting import within
from tests.demo.writers import lock_holder
from tests.stack.programs import missing
from tests.stack.small_disk import SmallDisk
from tests.traffic import SHORT_POLICY

TERMINATE = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"""
HOUR = 3600
CLOCK_SECONDS = 60.0
"""How long it may take until another clock shows, in decisions and in the state of replicas."""
CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
DECIDED = "SELECT count(*) FROM conversation_event WHERE recorded_at BETWEEN $1 AND $2"
PASSED_EARLY = """
    SELECT count(*) FROM conversation_event
    WHERE source = 'consumer' AND type = 'tick' AND recorded_at > occurred_at + interval '30 min'"""
AHEAD = """
    SELECT count(*) FROM conversation_event
    WHERE occurred_at > recorded_at + $1 AND (source <> 'consumer' OR type = 'tick')"""
"""What took effect before its time. The opening of a split is dated as its message, which may be of another clock."""
STORM_WRITERS = 8
STORM_ROWS = 10
STORM_SECONDS = 6.0


@fault(6, "PostgreSQL is restarted: in good order, at once, or after a crash", Track.DATABASE, weight=9)
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
    took_place(rig, proxy.commits_reset > before, "commits are reset")


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


@fault(
    17,
    "PostgreSQL's clock is an hour ahead, then an hour behind, then right",
    Track.DATABASE,
    weight=0,
    needs=lambda: missing("faketime"),
)
async def database_clock(rig: Rig) -> None:
    """Deadlines pass when the database's clock says so, and nothing takes effect before."""
    try:
        await _jump(rig, HOUR)
        rig.expect(await within(CLOCK_SECONDS, lambda: _any(rig, PASSED_EARLY)), "deadlines pass an hour early")
        await _jump(rig, -HOUR)
        await asyncio.sleep(SESSION_SECONDS)
    finally:
        await _jump(rig, 0)
    rig.expect(not await _any(rig, AHEAD, SHORT_POLICY.clock_tolerance), "nothing takes effect before its time")


async def _jump(rig: Rig, seconds: int) -> None:
    """Sets the clock, and waits until events are decided by it and all replicas are ready."""

    async def decides() -> bool:
        return await _any(rig, DECIDED, since, since + timedelta(seconds=HOUR / 2))

    await rig.postgres.set_clock(seconds)
    since = datetime.now(UTC) + timedelta(seconds=seconds)
    wrong_by = (await rig.fetch(CLOCK))[0][0] - time.time()
    rig.expect(abs(wrong_by - seconds) < HOUR / 2, f"the clock of PostgreSQL is wrong by {seconds} s")
    rig.expect(await within(CLOCK_SECONDS, decides), f"events are decided by a clock that is wrong by {seconds} s")
    ready = await rig.replicas.until_ready(CLOCK_SECONDS)
    rig.expect(ready or rig.strikes > 1, f"all replicas are ready under a clock that is wrong by {seconds} s")


async def _any(rig: Rig, count: str, *arguments: object) -> bool:
    return bool((await rig.fetch(count, *arguments))[0][0])


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
