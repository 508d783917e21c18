"""The history's table, page by page: what is old on some pages, counted or removed.

By page: rows of the history never move, so each is visited once, and no insert pays for an index. A BRIN index would
not help: new rows fill the space that pruning frees, and soon every range of pages holds rows of every age.
"""

from datetime import datetime

import asyncpg

from consumer.postgres import citus
from consumer.postgres.client import on_citus

_HISTORY_SIZE = "SELECT pg_relation_size('conversation_event'), current_setting('block_size')::int"
# By `recorded_at`: a record enters the log before its row is recorded, so the row outlasts it. Events are dated freely.
_OLD = "FROM conversation_event WHERE ctid >= $1 AND ctid < $2 AND recorded_at < $3"
_COUNT_OLD = f"SELECT count(*) {_OLD}"
_PRUNE = f"WITH gone AS (DELETE {_OLD} RETURNING 1) SELECT count(*) FROM gone"


async def history_size(connection: asyncpg.Connection) -> tuple[int, int]:
    """Pages of the table, and bytes of a page."""
    table, page = await connection.fetchrow(citus.HISTORY_SIZE if on_citus(connection) else _HISTORY_SIZE)
    return table // page, page


async def count_old(connection: asyncpg.Connection, pages: range, before: datetime) -> int:
    """How many rows `prune` would remove."""
    return int(await connection.fetchval(_COUNT_OLD, *_bounds(pages), before))


async def prune(connection: asyncpg.Connection, pages: range, before: datetime) -> int:
    """Removes what was recorded before a time; how many rows."""
    return int(await connection.fetchval(_PRUNE, *_bounds(pages), before))


def _bounds(pages: range) -> tuple[tuple[int, int], tuple[int, int]]:
    return (pages.start, 0), (pages.stop, 0)
