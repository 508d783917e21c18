"""Connections that are lost: the error of the caller, and what is left of them at the server."""

import asyncio
import gc
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from consumer.errors import UnavailableError
from consumer.postgres.store import PostgresStore
from consumer.settings import DatabaseSettings
from tests.conftest import opened
from tests.stack.database import connected
from tests.stack.postgres_server import PostgresServer
from tests.stack.proxy import Proxy

USERS = 6
POOL_SIZE = DatabaseSettings().writers + 1
OURS = "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'conversation-consumer'"
KILL_ONE = f"SELECT pg_terminate_backend(pid, 1000) {OURS} ORDER BY backend_start DESC LIMIT 1"


@pytest.fixture(autouse=True)
def no_garbage_collection() -> Iterator[None]:
    """A replica collects garbage seldom: what is closed only by then is a leak."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def connections(connection: asyncpg.Connection) -> int:
    """How many connections of the store the server has."""
    return int(await connection.fetchval(f"SELECT count(*) {OURS}"))


async def at_once(store: PostgresStore, users: int = USERS) -> list[datetime | BaseException]:
    """That many users of the pool at the same moment, and what each of them gets."""
    return await asyncio.gather(*(store.now() for _ in range(users)), return_exceptions=True)


@asynccontextmanager
async def busy(store: PostgresStore) -> AsyncIterator[None]:
    """Users of the pool who go on through all outages, until the end of the block."""
    ended = asyncio.Event()

    async def use() -> None:
        while not ended.is_set():
            with suppress(UnavailableError):
                await store.now()
            await asyncio.sleep(0)

    async with asyncio.timeout(60), asyncio.TaskGroup() as users:
        for _ in range(USERS):
            users.create_task(use())
        try:
            yield
        finally:
            ended.set()


async def at_most_a_pool(server: asyncpg.Connection) -> None:
    """Waits until the server has seen the end of all connections but those of one pool."""

    async def few() -> bool:
        return await connections(server) <= POOL_SIZE

    await eventually(few, f"{await connections(server)} connections are open at the server")


async def eventually(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + 10
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


def open_sockets() -> int:
    """How many sockets this process has open."""
    return sum(stat.S_ISSOCK(mode) for mode in descriptor_modes())


def descriptor_modes() -> Iterator[int]:
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor that lists the directory is gone by now
            yield os.fstat(int(descriptor.name)).st_mode


@asynccontextmanager
async def proxied(database: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A network before the database, and the URL of the way through it."""
    address = urlsplit(database)
    assert address.hostname is not None
    assert address.port is not None
    async with Proxy.open(address.hostname, address.port) as network:
        user, _, _ = address.netloc.rpartition("@")
        yield network, address._replace(netloc=f"{user}@127.0.0.1:{network.port}").geturl()


async def first_connection_answers(network: Proxy, through: str, count: int) -> bool:
    """Whether it does although each connection ends after so many bytes of either side."""
    network.cut_after(count)
    async with opened(through) as store:
        try:
            await store.now()
        except UnavailableError:
            return False
    return True


class TestLostConnections:
    async def test_a_first_connection_that_ends_after_any_number_of_bytes_is_an_outage(self, database: str) -> None:
        async with proxied(database) as (network, through):
            answers = [await first_connection_answers(network, through, count) for count in range(20, 5000, 20)]

        assert answers == sorted(answers)
        assert {*answers} == {False, True}

    async def test_thirty_lost_connections_leave_no_more_at_the_server_than_the_pool_holds(
        self, store: PostgresStore, database: str
    ) -> None:
        async with connected(database) as server:
            losses = 0
            async with asyncio.timeout(60):
                while losses < 30:
                    await at_once(store)
                    await server.fetchval(KILL_ONE)
                    losses += any(isinstance(result, UnavailableError) for result in await at_once(store))

            await at_most_a_pool(server)
            assert isinstance(await store.now(), datetime)

    async def test_a_connection_in_use_when_another_is_lost_is_closed_once_it_is_returned(
        self, store: PostgresStore, database: str
    ) -> None:
        async with connected(database) as server:
            async with store._connection("load") as in_use:
                assert await store.answers()
                await server.fetchval(f"SELECT pg_terminate_backend(pid) {OURS} AND pid <> $1", in_use.get_server_pid())
                with pytest.raises(UnavailableError):
                    await store.now()
                assert await in_use.fetchval("SELECT 1") == 1

            async def none_left() -> bool:
                return await connections(server) == 0

            await eventually(none_left, "the connection that was returned is closed")

    async def test_one_lost_connection_costs_the_others_theirs_only_once(
        self, store: PostgresStore, database: str
    ) -> None:
        async with connected(database) as server:
            await at_once(store)
            await server.fetch(f"SELECT pg_terminate_backend(pid) {OURS}")
            await at_once(store)
            before = [row[0] for row in await server.fetch(f"SELECT pid {OURS} ORDER BY pid")]

            assert all(isinstance(result, datetime) for result in await at_once(store))

            assert set(before) <= {row[0] for row in await server.fetch(f"SELECT pid {OURS}")}


class TestRestart:
    async def test_a_restarted_server_has_no_more_connections_than_the_pool_holds(self) -> None:
        server = await asyncio.to_thread(PostgresServer)
        try:
            async with opened(server.dsn) as store:
                await at_once(store, POOL_SIZE)
                sockets = open_sockets()
                async with busy(store):
                    for _ in range(3):
                        await asyncio.to_thread(server.restart)
                        await eventually(store.answers, "the database answers again")

                async with connected(server.dsn) as watching:
                    await at_most_a_pool(watching)
                assert open_sockets() <= sockets
        finally:
            await asyncio.to_thread(server.stop)


class TestHalfOpenNetwork:
    async def test_nothing_is_left_of_the_connections_that_a_silent_network_cost(self, database: str) -> None:
        async with (
            proxied(database) as (network, through),
            connected(database) as server,
            opened(
                through, connect_timeout_seconds=0.3, statement_timeout_seconds=0.2, command_timeout_seconds=0.3
            ) as store,
        ):
            async with busy(store):
                for _ in range(4):
                    network.fall_silent()
                    assert not await store.answers()
                    network.heal()
                    await eventually(store.answers, "the database answers again")

            await at_most_a_pool(server)
