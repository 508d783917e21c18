"""Databases of the demo and the tests: made and dropped by the name that they were given here."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from tests.stack.process import DevstackError

APPLIED = "SELECT coalesce(sum(next_offset), 0) FROM kafka_offset"
"""How many records of the log the consumers have applied, where the log starts at 0."""


@asynccontextmanager
async def new_database(
    server: str, prefix: str, template: str | None = None, strategy: str = "WAL_LOG"
) -> AsyncIterator[str]:
    """The URL of a database that lasts as long as the block; a copy of `template` (a URL), if there is one.

    `strategy` is that of `CREATE DATABASE`: FILE_COPY for a large one.
    """
    name = f"{prefix}_{secrets.token_hex(8)}"
    await execute(
        server,
        f"CREATE DATABASE {name}"
        + (f" TEMPLATE {urlsplit(template).path[1:]} STRATEGY {strategy}" if template else ""),
    )
    try:
        yield urlsplit(server)._replace(path=f"/{name}").geturl()
    finally:
        await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the driver's, for as long as the block lasts."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, sql: str) -> None:
    try:
        connection = await asyncpg.connect(url)
    except OSError as error:
        raise DevstackError(
            f"PostgreSQL does not answer at {urlsplit(url).netloc.rpartition('@')[2]}: {error}"
        ) from error
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
