"""The tables on a Citus cluster: how they are distributed, and whether they are."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from consumer.errors import ConfigurationError
from consumer.postgres.client import APPLICATION, HAS_CITUS
from consumer.postgres.errors import classified, connecting
from consumer.postgres.tables import CONVERSATION_TABLES, SCHEMA_LOCK, schema_revision

COLUMN = "conversation_id"
LEADER = CONVERSATION_TABLES[0]
"""The other tables of a conversation are colocated with it: what belongs to a conversation lies with it."""
LEAST_REVISION = "0007"
"""The first schema in which each unique key has the conversation."""
LEAST_SHARDS = 4
SHARDS_PER_WORKER = 2
_NODES = """
    SELECT format('%s:%s', nodename, nodeport), isactive FROM pg_dist_node
    WHERE noderole = 'primary' AND shouldhaveshards ORDER BY 1"""
_DISTRIBUTED = """
    SELECT logicalrelid::text, colocationid, count(shardid) FROM pg_dist_partition AS p
    JOIN pg_dist_shard AS s USING (logicalrelid)
    WHERE partmethod = 'h' AND column_to_column_name(logicalrelid, partkey) = $2
        AND logicalrelid::text = ANY($1::text[])
    GROUP BY 1, 2"""
_BYTES = "SELECT pg_total_relation_size(to_regclass($1)) - coalesce(pg_indexes_size(to_regclass($1)), 0)"
# A type goes to all nodes, also to later ones, with the first table that uses it. These are of parameters only.
_TYPES = """
    CREATE TABLE types_to_distribute (a conversation_version, b event_identity, c conversation_write);
    SELECT create_reference_table('types_to_distribute'); DROP TABLE types_to_distribute"""
_IN_TURN = "SET LOCAL citus.multi_shard_modify_mode = 'sequential'"


@dataclass(frozen=True, slots=True)
class Layout:
    """The nodes that may hold shards; distributed table -> (colocation group, shards)."""

    active: Sequence[str]
    inactive: Sequence[str]
    tables: dict[str, tuple[int, int]]

    @property
    def missing(self) -> list[str]:
        """Tables that are not distributed by conversation."""
        return [table for table in CONVERSATION_TABLES if table not in self.tables]

    @property
    def apart(self) -> list[str]:
        """Distributed tables that do not lie with the conversations."""
        leader = self.tables.get(LEADER)
        return [table for table, place in self.tables.items() if leader is not None and place[0] != leader[0]]

    @property
    def shards(self) -> int:
        return self.tables[LEADER][1] if LEADER in self.tables else 0


async def read_layout(connection: asyncpg.Connection) -> Layout | None:
    """Null where the extension is not installed."""
    with classified():
        if not await connection.fetchval(HAS_CITUS):
            return None
        nodes = await connection.fetch(_NODES)
        tables = await connection.fetch(_DISTRIBUTED, CONVERSATION_TABLES, COLUMN)
    return Layout(
        [name for name, is_active in nodes if is_active],
        [name for name, is_active in nodes if not is_active],
        {table: (group, shards) for table, group, shards in tables},
    )


@dataclass(frozen=True, slots=True)
class DistributionPlan:
    """What is to be distributed, each with the bytes that go to the workers; and over what."""

    workers: Sequence[str]
    shards: int
    tables: Sequence[tuple[str, int]]


async def make_plan(connection: asyncpg.Connection, shards: int | None) -> DistributionPlan:
    """Raises `ConfigurationError` where there is no cluster, or the tables are not as they can be distributed."""
    with classified():
        async with connection.transaction():  # a pooler passes it to one session of the server's
            return await _make_plan(connection, shards)


async def _make_plan(connection: asyncpg.Connection, shards: int | None) -> DistributionPlan:
    layout = await read_layout(connection)
    if layout is None:
        raise ConfigurationError(
            "the database has no extension citus: run CREATE EXTENSION citus in this database on the coordinator and "
            "on each worker, then citus_set_coordinator_host and citus_add_node on the coordinator"
        )
    if not layout.active or layout.inactive:
        away = f"inactive: {', '.join(layout.inactive)}" if layout.inactive else "no node may hold shards"
        raise ConfigurationError(f"{away}: see pg_dist_node, add workers with citus_add_node or activate them")
    if layout.apart:
        raise ConfigurationError(
            f"{', '.join(layout.apart)}: distributed, but not with {LEADER}: run undistribute_table on it first"
        )
    await _check_schema(connection)
    count = layout.shards or shards or max(LEAST_SHARDS, SHARDS_PER_WORKER * len(layout.active))
    sizes = [(table, int(await connection.fetchval(_BYTES, table) or 0)) for table in layout.missing]
    return DistributionPlan(layout.active, count, sizes)


async def _check_schema(connection: asyncpg.Connection) -> None:
    with classified():
        revision = await schema_revision(connection)
    if revision is None or revision < LEAST_REVISION:
        raise ConfigurationError(
            f"schema at {revision or 'nothing'}, only from {LEAST_REVISION} on it can be distributed: "
            "run `conversation-consumer migrate`"
        )


async def distribute(connection: asyncpg.Connection, plan: DistributionPlan) -> AsyncIterator[str]:
    """Yields the name of each table once it is distributed. In one transaction: all of them or none.

    Who writes meanwhile waits, or finds an outage. Raises `ConsumerError`.
    """
    with classified():
        async with connection.transaction():
            await connection.execute(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK}); {_IN_TURN}")
            await connection.execute(f"LOCK TABLE {', '.join(CONVERSATION_TABLES)} IN ACCESS EXCLUSIVE MODE")
            await connection.execute(_TYPES)
            for table, _ in plan.tables:
                await _distribute(connection, table, plan.shards)
                yield table
        for table, size in plan.tables:
            if size:
                await connection.execute(f"SELECT truncate_local_data_after_distributing_table('{table}')")


async def _distribute(connection: asyncpg.Connection, table: str, shards: int) -> None:
    if table == LEADER:
        sql = "SELECT create_distributed_table($1::text::regclass, $2, shard_count => $3, colocate_with => 'none')"
        await connection.execute(sql, table, COLUMN, shards)
    else:
        sql = f"SELECT create_distributed_table($1::text::regclass, $2, colocate_with => '{LEADER}')"
        await connection.execute(sql, table, COLUMN)


@asynccontextmanager
async def administering(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection without time limits of its own, also through a pooler.

    Raises `ConfigurationError` and `UnavailableError`.
    """
    with connecting(url):
        connection = await asyncpg.connect(
            url, timeout=10, statement_cache_size=0, server_settings={"application_name": APPLICATION}
        )
    try:
        yield connection
    finally:
        await connection.close()
