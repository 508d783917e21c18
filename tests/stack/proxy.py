"""A network between a client and a server that can fail in each of a network's ways."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.stack.process import free_port
from tests.stack.proxied_connection import CommitReset, Connection, Faults


class Proxy:
    """Forwards connections of the loopback interface. Each fault lasts until `heal`, unless it says otherwise.

    Runs in the event loop of its caller: what blocks the loop stalls the network.
    """

    def __init__(self, host: str, port: int, *, is_postgres: bool = False) -> None:
        self._upstream = (host, port)
        self._faults = Faults(is_postgres)
        self._cut_after_bytes: int | None = None
        self._connections: set[Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener: socket.socket | None = None
        self.port = free_port()
        self.heal()

    @classmethod
    @asynccontextmanager
    async def open(cls, host: str, port: int, *, is_postgres: bool = False) -> AsyncIterator["Proxy"]:
        """With `is_postgres` it reads PostgreSQL's messages, which `reset_at_commit` needs."""
        proxy = cls(host, port, is_postgres=is_postgres)
        try:
            yield proxy
        finally:
            proxy.refuse()
            for task in proxy._tasks:
                task.cancel()
            await asyncio.gather(*proxy._tasks, return_exceptions=True)

    @property
    def latency_seconds(self) -> float:
        """How late bytes arrive, in each direction."""
        return self._faults.latency_seconds

    @latency_seconds.setter
    def latency_seconds(self, seconds: float) -> None:
        self._faults.latency_seconds = seconds

    @property
    def commits_reset(self) -> int:
        """How often `reset_at_commit` has struck."""
        return self._faults.commits_reset

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def switch(self, host: str, port: int) -> None:
        """New connections go to another server. Not a fault: `heal` leaves it."""
        self._upstream = (host, port)

    def fall_silent(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Accepts everything and forwards nothing, in one direction or both. `heal` delivers all of it."""
        if to_server:
            self._faults.to_server.clear()
        if to_client:
            self._faults.to_client.clear()

    def refuse(self) -> None:
        """New connections are refused; those that are open stay."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def half_open(self) -> None:
        """The connections that are open swallow everything, their ends included, without limit: `heal` does not help.

        They stay at the server until `reset_all`, as with a server that has no keepalive. New connections work.
        """
        for connection in self._connections:
            connection.is_half_open = True

    def reset_all(self) -> None:
        """Resets (RST) the connections that are open, half-open ones too, on both sides. New connections work."""
        for connection in list(self._connections):
            connection.reset()

    def cut_after(self, count: int) -> None:
        """Closes each connection, open or new, after so many more bytes of both directions together."""
        self._limit(count)

    def reset_at_commit(self, *, forward: bool, every: int = 1) -> None:
        """Resets a connection at its COMMIT: at each of them, or at every second, third ... of all connections.

        With `forward` the server commits and the client never learns it; without, the server never gets the COMMIT.
        Finds simple queries, as asyncpg's transactions send them, on connections without TLS.
        """
        assert self._faults.is_postgres
        self._faults.commit_reset = CommitReset(forward, every)

    def heal(self) -> None:
        """Ends each fault. Everything sent during a silence arrives, the end of connections included."""
        self._faults.to_server.set()
        self._faults.to_client.set()
        self._faults.latency_seconds = 0
        self._faults.commit_reset = None
        self._limit(None)
        if self._listener is None:
            self._listen()

    def _limit(self, count: int | None) -> None:
        self._cut_after_bytes = count
        for connection in self._connections:
            connection.bytes_left = count

    def _listen(self) -> None:
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(("127.0.0.1", self.port))
        self._listener.listen(128)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):  # the client has given up meanwhile
            client, _ = listener.accept()
            client.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._serve(client))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, accepted: socket.socket) -> None:
        client = await asyncio.open_connection(sock=accepted)
        try:
            await self._faults.to_server.wait()
            with suppress(OSError):
                server = await asyncio.open_connection(*self._upstream)
                connection = Connection(self._faults, client, server)
                connection.bytes_left = self._cut_after_bytes
                self._connections.add(connection)
                try:
                    await connection.run()
                finally:
                    self._connections.discard(connection)
        finally:
            client[1].close()
