"""One connection through a fault proxy: two directions, each with a network's ways to go wrong."""

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from tests.stack.postgres_messages import ClientMessages

CHUNK_BYTES = 65536
CHUNKS_UNDER_WAY = 64
"""How much a direction takes from its sender before it passes anything on: 4 MiB."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class EndedError(Exception):
    """The connection is over; nothing more is passed on."""


@dataclass(slots=True)
class CommitReset:
    """Which COMMITs are struck, and how."""

    forward: bool
    every: int
    seen: int = 0

    def strikes(self) -> bool:
        self.seen += 1
        return self.seen % self.every == 0


@dataclass(slots=True)
class Faults:
    """The state of a network, shared by its connections."""

    is_postgres: bool = False
    """Whether the bytes are PostgreSQL's protocol, in which COMMITs can be found."""
    to_server: asyncio.Event = field(default_factory=asyncio.Event)
    to_client: asyncio.Event = field(default_factory=asyncio.Event)
    """A direction passes bytes on while its event is set."""
    latency_seconds: float = 0
    commit_reset: CommitReset | None = None
    commits_reset: int = 0


class Connection:
    """Runs until both sides have closed, or it is cut or reset."""

    def __init__(
        self, faults: Faults, client: tuple[StreamReader, StreamWriter], server: tuple[StreamReader, StreamWriter]
    ) -> None:
        self.is_half_open = False
        self.bytes_left: int | None = None
        """How much is passed on before the connection is cut; null: without limit."""
        self._faults = faults
        self._writers = (client[1], server[1])
        self._messages = ClientMessages()
        self._drops_the_reply = False
        self._tasks: list[asyncio.Task[None]] = []
        self._to_server = Direction(self, faults, faults.to_server, client[0], server[1], self._at_commit)
        self._to_client = Direction(self, faults, faults.to_client, server[0], client[1], self._at_reply)

    async def run(self) -> None:
        """Raises nothing but `CancelledError`."""
        try:
            async with asyncio.TaskGroup() as group:
                self._tasks = [group.create_task(each.run()) for each in (self._to_server, self._to_client)]
        except* (OSError, EndedError):
            pass
        finally:
            for writer in self._writers:
                writer.close()

    def reset(self) -> None:
        """Both sides get RST; what is under way is lost."""
        for writer in self._writers:
            with suppress(OSError):  # closed already
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()

    def _at_commit(self, data: bytes) -> bytes:
        """What of the client's bytes goes on to the server. Raises `EndedError` where a commit is struck."""
        if not self._faults.is_postgres:
            return data
        commit = self._messages.feed(data)
        fault = self._faults.commit_reset
        if commit is None or fault is None or not fault.strikes():
            return data
        if not fault.forward:
            self._strike()
        self._drops_the_reply = True
        return data[: commit.end]

    def _at_reply(self, data: bytes) -> bytes:
        # Only the reply proves that the server has had the COMMIT: a reset right behind it could overtake it.
        if self._drops_the_reply and data:
            self._strike()
        return data

    def _strike(self) -> None:
        self._faults.commits_reset += 1
        self.reset()
        raise EndedError


class Direction:
    """Bytes from a reader to a writer, in order, each late by the latency of its moment."""

    def __init__(
        self,
        connection: Connection,
        faults: Faults,
        gate: asyncio.Event,
        reader: StreamReader,
        writer: StreamWriter,
        inspect: Callable[[bytes], bytes],
    ) -> None:
        self._connection = connection
        self._faults = faults
        self._gate = gate
        self._reader = reader
        self._writer = writer
        self._inspect = inspect
        self._under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_UNDER_WAY)

    async def run(self) -> None:
        receiving = asyncio.ensure_future(self._receive())
        try:
            await self._deliver()
        finally:
            receiving.cancel()

    async def _receive(self) -> None:
        """Takes the sender's bytes up to their end, which is empty bytes; a reset is an end too."""
        clock = asyncio.get_running_loop().time
        data = b"more"
        while data:
            try:
                data = await self._reader.read(CHUNK_BYTES)
            except OSError:
                data = b""
            await self._under_way.put((clock() + self._faults.latency_seconds, data))

    async def _deliver(self) -> None:
        clock = asyncio.get_running_loop().time
        data = b"more"
        while data:
            due, data = await self._under_way.get()
            if (early := due - clock()) > 0:
                await asyncio.sleep(early)
            await self._gate.wait()
            if not self._connection.is_half_open:
                await self._pass_on(self._inspect(data))

    async def _pass_on(self, data: bytes) -> None:
        left = self._connection.bytes_left
        if not data:
            self._writer.close()
        elif left is None or left > len(data):
            self._writer.write(data)
        else:
            self._writer.write(data[:left])
            raise EndedError
        if left is not None:
            self._connection.bytes_left = left - len(data)
        if data:
            await self._writer.drain()
