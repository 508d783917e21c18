"""A network between a client and a server that can fall silent."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Forwards connections of the loopback interface. While silent, it accepts everything and forwards nothing."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._upstream_port = port
        self._forwards = asyncio.Event()
        self._forwards.set()
        self._connections: set[asyncio.Task[None]] = set()
        self.port = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, port: int) -> AsyncIterator["Proxy"]:
        proxy = cls(host, port)
        server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        proxy.port = server.sockets[0].getsockname()[1]
        try:
            yield proxy
        finally:
            server.close()
            for connection in proxy._connections:
                connection.cancel()
            await asyncio.gather(*proxy._connections, return_exceptions=True)

    def fall_silent(self) -> None:
        self._forwards.clear()

    def heal(self) -> None:
        """Everything sent meanwhile arrives, the end of connections included."""
        self._forwards.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        with suppress(OSError, asyncio.CancelledError):
            await self._forwards.wait()
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._upstream_port)
            await asyncio.gather(self._forward(reader, upstream_writer), self._forward(upstream_reader, writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await self._forwards.wait()
                writer.write(data)
                await writer.drain()
            await self._forwards.wait()
        finally:
            writer.close()
