"""Servers that fail for real: brokers that replicate, a PostgreSQL pair, and nothing left of them."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from consumer.settings import KafkaSettings
from tests.stack.broker import read_all
from tests.stack.kafka_cluster import KafkaCluster
from tests.stack.postgres_pair import PostgresPair
from tests.stack.process import DevstackError, Server
from tests.stack.small_disk import SmallDisk

TOPIC = "replicated"
CLOCK = "SELECT extract(epoch FROM clock_timestamp())::float8"
MANY_ROWS = "INSERT INTO kept SELECT 0 FROM generate_series(1, 100000)"
needs_disk = pytest.mark.skipif(SmallDisk.missing() is not None, reason=f"{SmallDisk.missing()}")
START_AND_WAIT = """
import asyncio
from contextlib import AsyncExitStack
from tests.stack.kafka_cluster import KafkaCluster
from tests.stack.postgres_pair import PostgresPair

async def wait():
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(PostgresPair.open(disk_bytes=300 << 20))
        cluster = await stack.enter_async_context(KafkaCluster.open(brokers=1))
        pair.freeze()
        await cluster.kill(0)
        print("started", flush=True)
        await asyncio.sleep(60)

asyncio.run(wait())
"""


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class TestServer:
    @pytest.fixture
    def server(self) -> Iterator[Server]:
        server = Server("sleeper")
        server.start(["sh", "-c", "sleep 60 & echo $! >child; wait"], (server.directory / "child").exists)
        try:
            yield server
        finally:
            server.stop()

    def test_one_that_was_ended_is_down_until_it_is_started_again(self, server: Server) -> None:
        before = server.pid

        server.end(signal.SIGKILL)
        server.end(signal.SIGKILL)

        assert not server.is_up
        assert not Path(f"/proc/{before}").exists()
        server.start_again(lambda: True)
        assert server.pid not in (0, before)

    def test_one_that_ended_by_itself_can_be_started_again(self, server: Server) -> None:
        os.kill(server.pid, signal.SIGKILL)
        eventually(lambda: not server.is_up, "the supervisor has seen the end")

        server.start_again(lambda: True)

        assert server.is_up

    def test_a_frozen_one_stands_still_with_its_children(self, server: Server) -> None:
        pids = (server.pid, int((server.directory / "child").read_text()))

        server.freeze()

        eventually(lambda: [state(pid) for pid in pids] == ["T", "T"], "both are stopped")
        server.thaw()
        eventually(lambda: [state(pid) for pid in pids] == ["S", "S"], "both go on")


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class TestKafkaCluster:
    async def test_records_survive_the_kill_and_the_freeze_of_their_leader(self) -> None:
        async with KafkaCluster.open() as cluster, producer(cluster) as produce:
            await create_topic(cluster)
            await produce.send_and_wait(TOPIC, b"before")

            killed = await cluster.leader(TOPIC)
            await cluster.kill(killed)
            await produce.send_and_wait(TOPIC, b"while one is away")
            await cluster.start(killed)
            await all_in_sync(cluster)
            frozen = await cluster.leader(TOPIC)
            cluster.freeze(frozen)
            await is_led_by(cluster, *{0, 1, 2} - {frozen})
            cluster.thaw(frozen)
            await produce.send_and_wait(TOPIC, b"after")

            found = await read_all(KafkaSettings(bootstrap_servers=cluster.bootstrap_servers), TOPIC)
            assert [record.value for record in found] == [b"before", b"while one is away", b"after"]

    async def test_clients_are_sent_to_the_brokers_proxies(self) -> None:
        async with KafkaCluster.open(brokers=1) as cluster, producer(cluster) as client:
            assert {broker.port for broker in client.client.cluster.brokers()} == {cluster.proxy(0).port}


@asynccontextmanager
async def producer(cluster: KafkaCluster) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(
        bootstrap_servers=cluster.bootstrap_servers, enable_idempotence=True, request_timeout_ms=5000
    )
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def create_topic(cluster: KafkaCluster) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
    await client.start()
    try:
        await client.create_topics([NewTopic(TOPIC, 1, 3)])
    finally:
        await client.close()
    await is_led_by(cluster, 0, 1, 2)


async def is_led_by(cluster: KafkaCluster, *brokers: int) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while (leader := await cluster.leader(TOPIC)) not in brokers:
        assert asyncio.get_running_loop().time() < deadline, f"it is led by {leader}"
        await asyncio.sleep(0.05)


async def all_in_sync(cluster: KafkaCluster) -> None:
    deadline = asyncio.get_running_loop().time() + 30
    while (in_sync := await cluster.in_sync(TOPIC)) != {0, 1, 2}:
        assert asyncio.get_running_loop().time() < deadline, f"in sync are {in_sync}"
        await asyncio.sleep(0.05)


@pytest.fixture
async def pair() -> AsyncIterator[PostgresPair]:
    async with PostgresPair.open(disk_bytes=300 << 20) as opened:
        await ask(opened, "CREATE TABLE kept (n int)")
        yield opened


async def ask(pair: PostgresPair, sql: str) -> list[int]:
    """The first column of the answer, as a client gets it."""
    client = await asyncpg.connect(pair.dsn, timeout=5, command_timeout=5)
    try:
        return [row[0] for row in await client.fetch(sql)]
    finally:
        client.terminate()


class TestPostgresPair:
    async def test_a_failover_loses_what_the_standby_did_not_get_and_so_does_the_next(self, pair: PostgresPair) -> None:
        for n in (1, 2):
            await ask(pair, f"INSERT INTO kept VALUES ({n})")
            await pair.catch_up()
            pair.hold_back()
            await ask(pair, f"INSERT INTO kept VALUES ({-n})")

            lost_bytes = await pair.failover(lose_commits=True, seconds=0)
            await pair.rebuild()

            assert lost_bytes > 0
        assert await ask(pair, "SELECT n FROM kept ORDER BY n") == [1, 2]

    async def test_a_failover_in_order_loses_nothing(self, pair: PostgresPair) -> None:
        await ask(pair, "INSERT INTO kept VALUES (1)")

        assert await pair.failover(lose_commits=False) == 0

        await ask(pair, "INSERT INTO kept VALUES (2)")
        assert await ask(pair, "SELECT n FROM kept ORDER BY n") == [1, 2]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL])
    async def test_a_restarted_primary_keeps_what_was_committed_and_its_standby(
        self, pair: PostgresPair, number: signal.Signals
    ) -> None:
        await ask(pair, "INSERT INTO kept VALUES (1)")

        await pair.restart(number)

        assert await ask(pair, "SELECT n FROM kept") == [1]
        await pair.catch_up()

    @needs_disk
    async def test_a_full_disk_refuses_rows_until_there_is_space_again(self, pair: PostgresPair) -> None:
        pair.fill_disk()
        with pytest.raises(asyncpg.DiskFullError) as caught:
            await ask(pair, MANY_ROWS)
        assert caught.value.sqlstate == "53100"

        await pair.free_disk()

        await ask(pair, MANY_ROWS)
        assert await ask(pair, "SELECT count(*) FROM kept") == [100_000]

    @needs_disk
    async def test_a_primary_that_the_full_disk_has_ended_is_started_again_with_its_rows(
        self, pair: PostgresPair
    ) -> None:
        await ask(pair, "INSERT INTO kept VALUES (1)")
        pair.fill_disk()
        async with asyncio.timeout(20):
            while pair.primary.is_up:  # no WAL can be written: it ends, and its recovery fails
                with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
                    await ask(pair, "INSERT INTO kept SELECT 2 WHERE pg_switch_wal() IS NULL")

        await pair.free_disk()

        assert await ask(pair, "SELECT n FROM kept") == [1]
        await pair.catch_up()

    async def test_without_root_a_disk_cannot_be_filled_and_the_error_says_so(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(SmallDisk, "missing", lambda: "mounting it needs root")
        async with PostgresPair.open() as pair:
            with pytest.raises(DevstackError, match="needs root"):
                pair.fill_disk()

    async def test_slow_commits_are_slow_until_they_heal(self, pair: PostgresPair) -> None:
        await pair.slow_fsync(0.1)
        assert await commit_seconds(pair) >= 0.1

        await pair.heal_fsync()

        async with asyncio.timeout(10):  # a reload reaches a backend in its own time
            while await commit_seconds(pair) >= 0.1:
                pass

    @pytest.mark.needs("faketime")
    async def test_the_clock_of_the_database_jumps_ahead_and_back_at_once_for_sessions_old_and_new(self) -> None:
        async with PostgresPair.open(movable_clock=True) as pair:
            session = await asyncpg.connect(pair.dsn)
            for hours in (0, 1, -1, 1, 0, -1):
                await pair.set_clock(3600 * hours)

                assert [await hours_ahead(session), await hours_ahead(await asyncpg.connect(pair.dsn))] == [hours] * 2

            session.terminate()
            await pair.restart(signal.SIGKILL)
            assert await hours_ahead(await asyncpg.connect(pair.dsn)) == -1

    async def test_a_frozen_primary_answers_nobody_until_it_thaws(self, pair: PostgresPair) -> None:
        client = await asyncpg.connect(pair.dsn)
        pair.freeze()
        with pytest.raises(TimeoutError):
            await client.fetchval("SELECT 1", timeout=0.2)

        pair.thaw()

        assert await ask(pair, "SELECT 1") == [1]
        client.terminate()


async def hours_ahead(session: asyncpg.Connection) -> int:
    """By how much the database's clock differs from ours."""
    there: float = await session.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    return round((there - time.time()) / 3600)


async def commit_seconds(pair: PostgresPair) -> float:
    client = await asyncpg.connect(pair.dsn)
    began = time.monotonic()
    await client.execute("INSERT INTO kept VALUES (1)")
    taken = time.monotonic() - began
    client.terminate()
    return taken


def test_nothing_is_left_when_the_parent_is_killed() -> None:
    # Not pytest's directory: PostgreSQL's user must be able to pass.
    home = Path(tempfile.mkdtemp(prefix="orphaned-"))
    home.chmod(0o711)
    script = [sys.executable, "-c", START_AND_WAIT]
    try:
        with subprocess.Popen(script, stdout=subprocess.PIPE, env={**os.environ, "TMPDIR": str(home)}) as parent:
            assert parent.stdout is not None
            assert parent.stdout.readline() == b"started\n"
            assert set(processes_in(home)) - {parent.pid}
            parent.send_signal(signal.SIGKILL)

        eventually(lambda: not list(processes_in(home)), "no process is left that works there or has a mount there")
        eventually(lambda: not list(home.iterdir()), "no file is left")
    finally:
        shutil.rmtree(home)


def processes_in(directory: Path) -> Iterator[int]:
    """Those whose command or mounts name the directory, or that work in it."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            traces = [(process / name).read_text() for name in ("cmdline", "mountinfo")]
            traces.append(str((process / "cwd").readlink()))
        except OSError:  # it has ended, or is the kernel's
            continue
        if any(str(directory) in trace for trace in traces):
            yield int(process.name)
