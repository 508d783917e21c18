"""The network faults of the proxy, as a client and a server meet them."""

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import asyncpg
import pytest

from tests.stack.proxy import Proxy

SILENCE_SECONDS = 0.2
LOST = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)


@dataclass
class EchoServer:
    """Sends everything back, and remembers what came."""

    received: bytearray = field(default_factory=bytearray)

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            self.received += b"<reset>"
        writer.close()

    async def has_received(self, data: bytes) -> None:
        deadline = asyncio.get_running_loop().time() + 5
        while self.received != data:
            assert asyncio.get_running_loop().time() < deadline, self.received
            await asyncio.sleep(0.005)


@asynccontextmanager
async def echo() -> AsyncIterator[tuple[EchoServer, Proxy]]:
    echoing = EchoServer()
    server = await asyncio.start_server(echoing.serve, "127.0.0.1", 0)
    try:
        async with Proxy.open(*server.sockets[0].getsockname()[:2]) as network:
            yield echoing, network
    finally:
        server.close()


class Client:
    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, network: Proxy) -> "Client":
        return cls(*await asyncio.open_connection("127.0.0.1", network.port))

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def get(self, size: int) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readexactly(size)

    async def ask(self, data: bytes) -> bytes:
        """What comes back of it."""
        self.send(data)
        return await self.get(len(data))

    async def hears_nothing(self) -> bool:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                await self.reader.read(1)
        except TimeoutError:
            return True
        return False


class TestNetwork:
    async def test_latency_delays_both_ways_and_no_byte_waits_for_another(self) -> None:
        async with echo() as (_, network):
            client = await Client.of(network)
            network.latency_seconds = 0.1
            clock = asyncio.get_running_loop().time
            began = clock()

            for _ in range(20):
                client.send(b"ping")
                await asyncio.sleep(0)
            await client.get(80)

            assert 0.2 <= clock() - began < 1

    async def test_a_half_open_connection_stays_silent_after_the_network_heals_and_a_new_one_works(self) -> None:
        async with echo() as (server, network):
            lost = await Client.of(network)
            assert await lost.ask(b"before") == b"before"

            network.half_open()
            network.heal()

            lost.send(b"swallowed")
            assert await lost.hears_nothing()
            assert await (await Client.of(network)).ask(b" after") == b" after"
            assert server.received == b"before after"

    async def test_a_reset_ends_half_open_connections_too_and_both_sides_learn_it(self) -> None:
        async with echo() as (server, network):
            client = await Client.of(network)
            await client.ask(b"x")
            network.half_open()

            network.reset_all()

            with pytest.raises(ConnectionResetError):
                await client.reader.read()
            await server.has_received(b"x<reset>")
            assert await (await Client.of(network)).ask(b"y") == b"y"
            assert network.open_connections == 1

    async def test_silence_towards_the_client_alone_lets_the_server_hear_it(self) -> None:
        async with echo() as (server, network):
            client = await Client.of(network)
            network.fall_silent(to_server=False)

            client.send(b"heard")

            await server.has_received(b"heard")
            assert await client.hears_nothing()
            network.heal()
            assert await client.get(5) == b"heard"

    async def test_silence_towards_the_server_alone_keeps_it_from_hearing(self) -> None:
        async with echo() as (server, network):
            client = await Client.of(network)
            await client.ask(b"x")
            network.fall_silent(to_client=False)

            client.send(b"late")

            assert await client.hears_nothing()
            assert server.received == b"x"
            network.heal()
            assert await client.get(4) == b"late"

    async def test_a_network_that_refuses_keeps_what_is_open(self) -> None:
        async with echo() as (_, network):
            client = await Client.of(network)
            await client.ask(b"x")

            network.refuse()

            with pytest.raises(ConnectionRefusedError):
                await Client.of(network)
            assert await client.ask(b"y") == b"y"
            network.heal()
            assert await (await Client.of(network)).ask(b"z") == b"z"

    async def test_a_cut_connection_ends_in_the_middle_of_a_message(self) -> None:
        async with echo() as (server, network):
            client = await Client.of(network)
            await client.ask(b"x")

            network.cut_after(7)
            client.send(b"0123456789")

            assert await client.reader.read() == b""
            assert server.received == b"x0123456"
            network.heal()
            assert await (await Client.of(network)).ask(b"long again") == b"long again"

    async def test_a_switch_sends_new_connections_elsewhere(self) -> None:
        async with echo() as (old, network), echo() as (new, other):
            await (await Client.of(network)).ask(b"old")

            network.switch("127.0.0.1", other.port)

            await (await Client.of(network)).ask(b"new")
            assert old.received == b"old"
            assert new.received == b"new"

    async def test_much_passes_unchanged(self) -> None:
        async with echo() as (server, network):
            client = await Client.of(network)
            much = bytes(range(256)) * 40_000

            assert await client.ask(much) == much

            assert server.received == much


@asynccontextmanager
async def through_proxy(database: str) -> AsyncIterator[tuple[Proxy, str, asyncpg.Connection]]:
    """The network, the URL through it, and a connection besides it."""
    address = urlsplit(database)
    assert address.hostname is not None
    assert address.port is not None
    async with Proxy.open(address.hostname, address.port, is_postgres=True) as network:
        user, _, _ = address.netloc.rpartition("@")
        direct = await asyncpg.connect(database)
        try:
            yield network, address._replace(netloc=f"{user}@127.0.0.1:{network.port}").geturl(), direct
        finally:
            await direct.close()


class TestCommit:
    @pytest.mark.parametrize(("forward", "found"), [(True, 1), (False, 0)])
    async def test_a_reset_commit_is_in_the_database_only_if_it_was_forwarded(
        self, database: str, forward: bool, found: int
    ) -> None:
        async with through_proxy(database) as (network, url, direct):
            client = await asyncpg.connect(url)
            network.reset_at_commit(forward=forward)

            with pytest.raises(LOST):
                await write(client, 1)

            assert network.commits_reset == 1
            assert await direct.fetchval("SELECT count(*) FROM kafka_offset") == found
            network.heal()
            await write(await asyncpg.connect(url), 2)
            assert await direct.fetchval("SELECT count(*) FROM kafka_offset") == found + 1

    async def test_only_every_so_many_commits_are_struck(self, database: str) -> None:
        async with through_proxy(database) as (network, url, direct):
            network.reset_at_commit(forward=False, every=3)
            client = await asyncpg.connect(url)

            await write(client, 1)
            await write(client, 2)
            with pytest.raises(LOST):
                await write(client, 3)

            assert await direct.fetchval("SELECT count(*) FROM kafka_offset") == 2


async def write(client: asyncpg.Connection, partition: int) -> None:
    async with client.transaction():
        await client.execute("INSERT INTO kafka_offset VALUES ('g', 't', $1, 'c', 0)", partition)
