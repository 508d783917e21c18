"""A PostgreSQL primary and its asynchronous standby: failovers that lose commits, full disks, slow commits."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from tests.stack.postgres_server import USER
from tests.stack.process import DevstackError
from tests.stack.proxy import Proxy
from tests.stack.replicated_server import CLOCK_SEEN_SECONDS, ReplicatedServer
from tests.stack.small_disk import SmallDisk

DISK_BYTES = 2 << 30
LONGEST_COMMIT_DELAY_SECONDS = 0.1
"""PostgreSQL allows no more."""
NewServer = Callable[[int | None], ReplicatedServer]
"""Makes a primary, or the standby of the server behind a port."""
BEHIND = "SELECT pg_wal_lsn_diff('{}', pg_last_wal_receive_lsn())::bigint"
CAUGHT_UP = "SELECT coalesce(bool_or(state = 'streaming' AND replay_lsn >= '{}'), false) FROM pg_stat_replication"


class PostgresPair:
    """Clients reach the primary of the moment through `proxy`, at an address that stays.

    Operations that start or end servers take seconds and leave the event loop free. One at a time.
    """

    def __init__(self, proxy: Proxy, replication: Proxy, primary: ReplicatedServer, new_server: NewServer) -> None:
        self.proxy = proxy
        self.primary = primary
        self.standby: ReplicatedServer | None = None
        self._replication = replication
        self._new_server = new_server

    @classmethod
    @asynccontextmanager
    async def open(cls, disk_bytes: int = DISK_BYTES, *, movable_clock: bool = False) -> AsyncIterator["PostgresPair"]:
        """Both servers streaming, each on a disk of this size where we may mount one.

        `set_clock` needs a movable clock. Raises `DevstackError` where Debian's faketime is missing.
        """
        new_server = partial(_new_server, disk_bytes, movable_clock)
        async with AsyncExitStack() as stack:
            primary = await asyncio.to_thread(new_server, None)
            address = ("127.0.0.1", primary.port)
            proxy = await stack.enter_async_context(Proxy.open(*address, is_postgres=True))
            replication = await stack.enter_async_context(Proxy.open(*address))
            pair = cls(proxy, replication, primary, new_server)
            try:
                await pair.rebuild()
                yield pair
            finally:
                for server in filter(None, (pair.primary, pair.standby)):
                    await asyncio.to_thread(server.stop)

    @property
    def dsn(self) -> str:
        """Of the current primary, through the proxy."""
        return f"postgresql://{USER}@127.0.0.1:{self.proxy.port}/postgres"

    async def restart(self, with_signal: signal.Signals = signal.SIGINT) -> None:
        """The primary: SIGINT fast, SIGQUIT immediate, SIGKILL a crash. Waits until it accepts again."""
        await asyncio.to_thread(self.primary.end, with_signal)
        await asyncio.to_thread(self.primary.start_again)

    def freeze(self) -> None:
        """Stops the primary with all its backends where they are."""
        self.primary.freeze()

    def thaw(self) -> None:
        self.primary.thaw()

    def hold_back(self) -> None:
        """The standby gets nothing more of what the primary writes, until `catch_up` or a failover."""
        self._replication.fall_silent()

    async def catch_up(self) -> None:
        """The standby gets everything that the primary has written by now."""
        self._replication.heal()
        written = await self.primary.ask("SELECT pg_current_wal_lsn()::text")
        await self._eventually(CAUGHT_UP.format(written), "the standby caught up")

    async def failover(self, *, lose_commits: bool, seconds: float = 1.0) -> int:
        """Promotes the standby, sends clients to it and drops the old primary. At least so many bytes of WAL were lost.

        To lose commits, the standby is held back for `seconds` before the primary is killed, unless it already was.
        Else the primary shuts down in order, and nothing is lost. Clients are sent to the standby just before it is
        promoted, so they may find it read-only for a moment. Needs a standby: see `rebuild`.
        """
        assert self.standby is not None
        if lose_commits:
            self.hold_back()
            await asyncio.sleep(seconds)
        else:
            await self.catch_up()
        old, new = self.primary, self.standby
        written = await old.ask("SELECT pg_current_wal_flush_lsn()::text")
        self.proxy.switch("127.0.0.1", new.port)
        await asyncio.to_thread(old.end, signal.SIGKILL if lose_commits else signal.SIGINT)
        # Nor must the standby get what is on its way: the silence stays until the promotion is over.
        self._replication.reset_all()
        lost = await new.ask(BEHIND.format(written))
        await asyncio.to_thread(new.promote)
        self.primary, self.standby = new, None
        self._replication.switch("127.0.0.1", new.port)
        self._replication.heal()
        await asyncio.to_thread(old.stop)
        return max(0, int(lost))

    async def rebuild(self) -> None:
        """Makes a new standby from the primary, in place of an old one, and waits until it has caught up."""
        if self.standby is not None:
            await asyncio.to_thread(self.standby.stop)
        self.standby = await asyncio.to_thread(self._new_server, self._replication.port)
        await self.catch_up()

    async def slow_fsync(self, seconds: float) -> None:
        """Each commit that writes waits so long before its WAL is flushed."""
        if not 0 < seconds <= LONGEST_COMMIT_DELAY_SECONDS:
            raise ValueError(f"a commit can be delayed by {LONGEST_COMMIT_DELAY_SECONDS} s at most")
        await self.primary.ask("ALTER SYSTEM SET commit_siblings = 0")
        await self.primary.ask(f"ALTER SYSTEM SET commit_delay = {round(seconds * 1e6)}")
        await self.primary.ask("SELECT pg_reload_conf()")

    async def heal_fsync(self) -> None:
        await self.primary.ask("ALTER SYSTEM RESET commit_delay")
        await self.primary.ask("SELECT pg_reload_conf()")

    async def set_clock(self, offset_seconds: int) -> None:
        """The primary's clock is so much ahead of ours, or behind. A failover ends that.

        Its processes look at the clock's file once a second. They are frozen meanwhile, so that all see the jump.
        """
        self.freeze()
        try:
            self.primary.set_clock(offset_seconds)
            await asyncio.sleep(CLOCK_SEEN_SECONDS)
        finally:
            self.thaw()

    def fill_disk(self) -> None:
        """The primary cannot write one more page. Raises `DevstackError` where it has no disk of its own."""
        self._disk().fill()

    async def free_disk(self) -> None:
        """Gives the space back, and starts the primary again if the full disk has ended it."""
        self._disk().free()
        if not self.primary.is_up:
            await asyncio.to_thread(self.primary.start_again)

    def _disk(self) -> SmallDisk:
        if self.primary.disk is None:
            raise DevstackError(SmallDisk.missing() or "the primary has no disk of its own")
        return self.primary.disk

    async def _eventually(self, condition: str, what: str, timeout_seconds: float = 60) -> None:
        """Waits until the primary says so. Raises `DevstackError` where that takes too long."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while not await self.primary.ask(condition):
            if asyncio.get_running_loop().time() > deadline:
                raise DevstackError(f"not within {timeout_seconds:.0f} s: {what}")
            await asyncio.sleep(0.05)


def _new_server(disk_bytes: int, movable_clock: bool, source_port: int | None) -> ReplicatedServer:
    disk = None if SmallDisk.missing() else SmallDisk(disk_bytes)
    try:
        return ReplicatedServer(disk, source_port, movable_clock=movable_clock)
    except BaseException:
        if disk:
            disk.stop()
        raise
