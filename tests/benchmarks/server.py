"""What settings of the server, and the shape of the tables, cost an event: the same load under each of them.

`BENCH_POSTGRES_BINARIES` names the programs of another PostgreSQL than that of the Python package, which is built
without lz4 and zstd: `/usr/lib/postgresql/15/bin`. A setting that the server does not know is left out.
"""

import os
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.benchmarks import conditions
from tests.benchmarks.arena import Arena, Log, fetch, open_arena
from tests.benchmarks.conditions import MIB
from tests.benchmarks.ours import Run
from tests.benchmarks.workload import Workload
from tests.stack.database import execute
from tests.stack.postgres_server import PostgresServer

GIVEN = os.environ.get("BENCH_POSTGRES_BINARIES", "")
ORIGIN = f" ({GIVEN})" if GIVEN else ""
CHECKPOINTS = "SELECT num_timed + num_requested FROM pg_stat_checkpointer"
CHECKPOINTS_BEFORE_17 = "SELECT checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter"
COMPRESSION = "SELECT unnest(enumvals) FROM pg_settings WHERE name = 'wal_compression'"
SIZE = "SELECT pg_total_relation_size('conversation') + pg_total_relation_size('conversation_event')"
MANY = 5_000_000
BASIS = {"max_wal_size": "1GB", "checkpoint_timeout": "15min"}
"""PostgreSQL's own distance between checkpoints, none of which comes by the clock."""


@dataclass(frozen=True, slots=True)
class Variant:
    """Settings of the server beside those of `BASIS`, as for `MANY` conversations.

    `statements` change the tables before the load.
    """

    name: str
    settings: Mapping[str, str] = field(default_factory=dict)
    statements: tuple[str, ...] = ()


def _distance(max_wal_size: str, method: str = "off") -> Variant:
    settings = {"max_wal_size": max_wal_size, "wal_compression": method}
    return Variant(", ".join(map("=".join, settings.items())), settings)


def settings_variants(methods: Collection[str]) -> list[Variant]:
    """Those whose WAL compression the server knows."""
    variants = [
        *(_distance("1GB", method) for method in ("off", "pglz", "lz4", "zstd")),
        *(_distance("4GB", method) for method in ("off", "pglz", "lz4")),
        *(_distance("16GB", method) for method in ("off", "pglz", "lz4")),
        _distance("1GB"),
    ]
    return [one for one in variants if one.settings["wal_compression"] in methods]


def scaled(settings: Mapping[str, str], conversations: int) -> dict[str, str]:
    """For so many conversations: a page is written as often between two checkpoints as with five million of them."""
    gigabytes = int(settings["max_wal_size"].removesuffix("GB"))
    return {**settings, "max_wal_size": f"{gigabytes * 1000 * conversations // MANY}MB"}


def _filled(percent: int) -> Variant:
    return Variant(
        f"fill factor {percent} of conversation",
        statements=(f"ALTER TABLE conversation SET (fillfactor = {percent})", "VACUUM FULL conversation"),
    )


SHAPES = (
    _filled(75),
    *map(_filled, (50, 90, 100)),
    Variant("no index on wake_at", statements=("DROP INDEX conversation_wake_at",)),
    Variant(
        "fill factor 70 of the history's index",
        statements=(
            "ALTER INDEX conversation_event_pkey SET (fillfactor = 70)",
            "REINDEX INDEX conversation_event_pkey",
        ),
    ),
    _filled(75),
)


class TunedServer(PostgresServer):
    """Its settings can be changed by `apply`: none of them is on its command line."""

    def _binaries(self) -> Path:
        return Path(GIVEN) if GIVEN else super()._binaries()

    def _options(self) -> dict[str, object]:
        return {name: value for name, value in super()._options().items() if name not in BASIS}

    async def apply(self, settings: Mapping[str, str]) -> None:
        """Restarts it with these settings alone. What was written before is on disk by then."""
        await execute(self.dsn, "CHECKPOINT")
        await execute(self.dsn, "ALTER SYSTEM RESET ALL")
        for name, value in settings.items():
            await execute(self.dsn, f"ALTER SYSTEM SET {name} = '{value}'")
        self.restart()


@dataclass(frozen=True, slots=True)
class Tuned:
    """A load under a variant. `hot`: the share of updates that needed no new index entries; `size` in bytes."""

    name: str
    run: Run
    checkpoints: int
    hot: float
    size: int

    @property
    def cells(self) -> tuple[str, ...]:
        run = self.run
        replica, postgres, *_ = run.cpu.microseconds(run.events)
        return (
            *(self.name, f"{run.rate:,.0f}", f"{replica:.1f}", f"{postgres:.1f}"),
            *(f"{run.wal_bytes / run.events:,.0f}", str(self.checkpoints), f"{self.hot:.0%}"),
            f"{self.size / MIB:,.0f}",
        )


HEADING = (
    *(
        "",
        "events/s",
        "CPU µs an event: replica",
        "PostgreSQL",
        "WAL bytes an event",
        "checkpoints begun",
        "HOT updates",
    ),
    "tables and indexes, MiB",
)


@asynccontextmanager
async def tuned_arena(arena: Arena) -> AsyncIterator[tuple[TunedServer, Arena]]:
    """A PostgreSQL of its own, beside the brokers of `arena`."""
    server = TunedServer()
    try:
        async with open_arena(replace(arena.services, postgres=server.dsn)) as own:
            yield server, own
    finally:
        server.stop()


async def under_settings(arena: Arena, workload: Workload) -> AsyncIterator[Tuned]:
    """The workload on a grown table, under settings of the server."""
    async with tuned_arena(arena) as (server, own):
        methods = {str(method) for (method,) in await fetch(server.dsn, COMPRESSION)}
        async for tuned in _under_each(server, own, workload, settings_variants(methods)):
            yield tuned


async def under_shapes(arena: Arena, workload: Workload) -> AsyncIterator[Tuned]:
    """The same, with other fill factors and indexes."""
    async with tuned_arena(arena) as (server, own):
        async for tuned in _under_each(server, own, workload, SHAPES):
            yield tuned


async def _under_each(
    server: TunedServer, arena: Arena, workload: Workload, variants: Sequence[Variant]
) -> AsyncIterator[Tuned]:
    async with (
        conditions.grown(arena, workload.conversations) as template,
        arena.log(workload, opening=False) as log,
    ):
        for variant in variants:
            await server.apply(scaled({**BASIS, **variant.settings}, workload.conversations))
            yield await _measured(arena, log, template, variant)


async def _measured(arena: Arena, log: Log, template: str, variant: Variant) -> Tuned:
    async with arena.database(template) as database:
        for statement in (*variant.statements, "VACUUM ANALYZE conversation", "CHECKPOINT"):
            await execute(database, statement)
        before = await _checkpoints(database)
        grown = await conditions.applied_to(arena, log, database)
        checkpoints, size = await _checkpoints(database) - before, await _number(database, SIZE)
    return Tuned(variant.name, grown.run, checkpoints, grown.hot / grown.updates, size)


async def _checkpoints(database: str) -> int:
    is_old = await _number(database, "SELECT current_setting('server_version_num')::int") < 170_000
    return await _number(database, CHECKPOINTS_BEFORE_17 if is_old else CHECKPOINTS)


async def _number(database: str, sql: str) -> int:
    ((number,),) = await fetch(database, sql)
    return int(str(number))
