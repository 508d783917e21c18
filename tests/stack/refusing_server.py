"""A server that speaks PostgreSQL's protocol just far enough to refuse a connection."""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

SSL_REQUEST = 80877103


@asynccontextmanager
async def refusing_server(sqlstate: str, message: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Its port. It answers each start-up with this error; with a context, it speaks TLS."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if await read_startup(reader) == SSL_REQUEST:
                writer.write(b"S" if tls else b"N")
                if tls:
                    await writer.start_tls(tls)
                await read_startup(reader)
            fields = f"SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0".encode()
            writer.write(struct.pack("!cI", b"E", len(fields) + 4) + fields)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def read_startup(reader: asyncio.StreamReader) -> int:
    """Reads a start-up packet; the code that it begins with."""
    length, code = struct.unpack("!II", await reader.readexactly(8))
    await reader.readexactly(length - 8)
    return int(code)
