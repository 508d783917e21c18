"""Databases of the demo and the tests: made and dropped by the name that they were given here."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg

from consumer.postgres import migrations
from consumer.postgres.distribution import administering, distribute, make_plan, read_layout
from tests.stack.citus import make_cluster, with_path, workers_of
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
    try:
        nodes = [server, *await workers_of(server)]
    except OSError as error:
        raise no_answer(server, error) from error
    copy = f" TEMPLATE {urlsplit(template).path[1:]} STRATEGY {strategy}" if template else ""
    for node in nodes:
        async with without_citus(node, urlsplit(template).path[1:] if template and len(nodes) > 1 else None):
            await execute(node, f"CREATE DATABASE {name}{copy}")
    try:
        if len(nodes) > 1 and not template:
            await make_cluster([with_path(node, name) for node in nodes])
        yield with_path(server, name)
    finally:
        for node in nodes:
            async with without_citus(node, name if len(nodes) > 1 else None):
                await execute(node, f"DROP DATABASE {name} WITH (FORCE)")


async def migrate(url: str, shards: int | None = None) -> None:
    """Brings a database to the newest schema, and distributes it where its server is a Citus coordinator."""
    await asyncio.to_thread(migrations.upgrade, url)
    async with administering(url) as connection:
        if await read_layout(connection) is not None:
            async for _ in distribute(connection, await make_plan(connection, shards)):
                pass


@asynccontextmanager
async def without_citus(server: str, database: str | None) -> AsyncIterator[None]:
    """Nobody is connected to the database meanwhile, so it can be copied or dropped: Citus keeps a session in each."""
    if database is None:
        yield
        return
    allow = "UPDATE pg_database SET datallowconn = {} WHERE datname = '{}'"
    await execute(server, allow.format("false", database))
    await execute(server, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    try:
        yield
    finally:
        await execute(server, allow.format("true", database))


def earlier(column: str, span: str) -> str:
    """SQL of a time less an interval, which Citus takes too: it must not depend on the zone of a session."""
    return f"{column} = ({column} AT TIME ZONE 'UTC' - interval '{span}') AT TIME ZONE 'UTC'"


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
        raise no_answer(url, error) from error
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


async def set_for_database(url: str, setting: str) -> None:
    """Gives its next connections a setting of the server's, as `name=value`."""
    await execute(url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET {setting}")


def no_answer(url: str, error: OSError) -> DevstackError:
    """Without the user and the password of the URL."""
    address = urlsplit(url).netloc.rpartition("@")[2]
    return DevstackError(f"PostgreSQL does not answer at {address}: {error}: check DEVSTACK_POSTGRES")
