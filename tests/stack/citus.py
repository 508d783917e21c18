"""A Citus cluster that `DEVSTACK_POSTGRES` names by its coordinator: the extension and the workers in its database."""

from collections.abc import Sequence
from urllib.parse import urlsplit

import asyncpg

from consumer.postgres.client import HAS_CITUS

_WORKERS = """
    SELECT nodename, nodeport FROM pg_dist_node
    WHERE noderole = 'primary' AND shouldhaveshards AND groupid <> 0 ORDER BY nodeport"""


async def workers_of(server: str) -> list[str]:
    """The URLs of the same database on the workers; empty on a server that is no coordinator."""
    connection = await asyncpg.connect(server)
    try:
        if not await connection.fetchval(HAS_CITUS):
            return []
        found = await connection.fetch(_WORKERS)
        return [urlsplit(server)._replace(netloc=_netloc(server, *row)).geturl() for row in found]
    finally:
        await connection.close()


async def make_cluster(databases: Sequence[str]) -> None:
    """Makes a cluster of databases that have nothing yet, the first one's server the coordinator."""
    for url in databases:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE EXTENSION IF NOT EXISTS citus")
        await connection.close()
    coordinator, *workers = databases
    connection = await asyncpg.connect(coordinator)
    try:
        await connection.execute("SELECT citus_set_coordinator_host($1::text, $2::int)", *_address(coordinator))
        for worker in workers:
            await connection.execute("SELECT citus_add_node($1::text, $2::int)", *_address(worker))
    finally:
        await connection.close()


def with_path(server: str, database: str) -> str:
    return urlsplit(server)._replace(path=f"/{database}").geturl()


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or 5432


def _netloc(server: str, host: str, port: int) -> str:
    user, _, _ = urlsplit(server).netloc.rpartition("@")
    return f"{user}@{host}:{port}" if user else f"{host}:{port}"
