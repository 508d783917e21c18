"""What runs otherwise where the conversations are distributed: a row can be locked only by statements of one shard.

A conversation and all that belongs to it lie in one shard, so nothing else of it is different. No two shards are read
at one moment.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any

import asyncpg

from consumer.errors import ConnectionLostError, ConsumerError, ContentionError, RefusedError
from consumer.postgres.client import on_citus

# One after the other: of a union, the coordinator would store what each part finds, and send it to a worker.
CHANGED = """
    SELECT NULL, c.conversation_id, NULL, NULL FROM unnest($1::conversation_version[]) AS k
    JOIN conversation AS c ON c.conversation_id = k.conversation_id AND c.version <> k.version"""
KNOWN = """
    SELECT NULL, e.conversation_id, e.source, e.event_id FROM unnest($1::event_identity[]) AS k
    JOIN conversation_event AS e USING (conversation_id, source, event_id)"""
# Finds nothing, by an index. A worker that is away fails it.
ASK_EVERY_SHARD = "SELECT FROM conversation WHERE wake_at = '-infinity'"
_BY_SHARD = """
    SELECT array_agg(id) FROM unnest($1::text[]) AS id
    GROUP BY get_shard_id_for_distribution_column('conversation', id)
    ORDER BY get_shard_id_for_distribution_column('conversation', id)"""
_DUE = """
    SELECT conversation_id FROM conversation
    WHERE wake_at <= $2 AND wake_at >= COALESCE($3::timestamptz, '-infinity') ORDER BY wake_at LIMIT $1"""
_REARM = """
    UPDATE conversation AS c SET wake_at = n.wake_at FROM unnest($1::text[], $2::timestamptz[]) AS n(id, wake_at)
    WHERE c.conversation_id = n.id"""
# In one step: timers that are pushed back meanwhile would be counted twice.
OVERDUE = """
    SELECT count(*) FROM conversation
    WHERE LEAST(idle_at, expires_at) < $1::timestamptz - interval '60 s'
        AND (wake_at <= $1 OR wake_at = ANY($2::timestamptz[]))"""
# Each shard has pages of its own; the largest says how far they go.
HISTORY_SIZE = """
    SELECT coalesce(max(result::bigint), 0), current_setting('block_size')::int
    FROM run_command_on_shards('conversation_event', $$SELECT pg_relation_size('%s')$$)"""
# Who waits for the row too is no holder, though others queue behind it: the holder waits for nobody.
HOLDER = """
    WITH RECURSIVE waits AS MATERIALIZED (SELECT waiting_gpid, blocking_gpid FROM citus_lock_waits),
    ahead(gpid) AS (
        SELECT blocking_gpid FROM waits WHERE waiting_gpid = $1
        UNION
        SELECT blocking_gpid FROM ahead JOIN waits ON waiting_gpid = gpid
    )
    SELECT a.pid, a.application_name, coalesce(a.usename, ''), a.xact_start, coalesce(a.state, '')
    FROM ahead JOIN citus_stat_activity AS a ON a.global_pid = gpid
    WHERE NOT a.is_worker_query AND gpid NOT IN (SELECT waiting_gpid FROM waits) ORDER BY a.xact_start LIMIT 1"""


async def read_versions_and_known_ids(
    connection: asyncpg.Connection, versions: Collection[tuple[str, int]], identities: Collection[tuple[str, str, str]]
) -> tuple[datetime, list[asyncpg.Record]]:
    """The time, and the rows of `attempt.READ_VERSIONS_AND_KNOWN_IDS`."""
    now = await connection.fetchval("SELECT clock_timestamp()")
    changed = await connection.fetch(CHANGED, versions) if versions else []
    return now, changed + (await connection.fetch(KNOWN, identities) if identities else [])


async def load_archive(
    connection: asyncpg.Connection, whole: str, asked: Sequence[tuple[str, datetime, bool]]
) -> list[asyncpg.Record]:
    """The rows of `attempt.LOAD_ARCHIVE_AT`, chosen here from the `whole` archive of the conversations.

    A join would have to look for the right session on each shard. Columns begin with id, session, status and opened_at.
    """
    wanted: dict[str, list[tuple[datetime, bool]]] = {}
    for key, at, later in asked:
        wanted.setdefault(key, []).append((at, later))
    found = await connection.fetch(whole, sorted(wanted))
    sessions = {key: list(of_one) for key, of_one in groupby(found, key=itemgetter(0))}
    return [row for key, of_one in sessions.items() for row in _asked_for(of_one, wanted[key])]


def _asked_for(sessions: Sequence[Any], wanted: Iterable[tuple[datetime, bool]]) -> Iterator[Any]:
    """Of a conversation's archive, the session of each time, and where so asked the ones after it."""
    places: set[int] = set()
    for at, later in wanted:
        place = max((i for i, row in enumerate(sessions) if row[3] <= at), default=0)
        places.update(range(place, len(sessions) if later else place + 1))
    return (row for i, row in enumerate(sessions) if i in places)


async def fetch_by_shard(
    connection: asyncpg.Connection, sql: str, ids: Sequence[str], *parameters: Any
) -> list[asyncpg.Record]:
    """The rows of a statement whose first parameter is conversation ids: once for the ids of each shard, in order."""
    shards = await connection.fetch(_BY_SHARD, ids) if ids else ()
    return [row for (of_shard,) in shards for row in await connection.fetch(sql, of_shard, *parameters)]


async def overdue(connection: asyncpg.Connection, pushed_back_at_most: int) -> int:
    """Timers that are due, or were pushed back by so many seconds at most, whose deadline has passed a minute ago."""
    now = await connection.fetchval("SELECT clock_timestamp()")
    second = now.replace(microsecond=0) - timedelta(microseconds=1)
    places = [second + timedelta(seconds=number) for number in range(1, pushed_back_at_most + 1)]
    return int(await connection.fetchval(OVERDUE, now, places))


@contextmanager
def repeated_errors(connection: asyncpg.Connection) -> Iterator[None]:
    """Translates what a coordinator repeats of a worker's words without their SQLSTATE, as it does where it copies."""
    try:
        yield
    except asyncpg.InternalServerError as error:
        if not on_citus(connection):
            raise
        error.detail = None  # may quote the row
        raise _of_worker(str(error.message or "")) from error


def _of_worker(text: str) -> ConsumerError:
    """An outage where it is in doubt: that skips nothing."""
    for words, known in (
        ("violates check constraint", RefusedError("PostgreSQL refused a row")),
        ("duplicate key value", ContentionError("duplicate")),
        ("lock timeout", ContentionError("lock")),
    ):
        if words in text:
            return known
    return ConnectionLostError(f"a worker of the Citus cluster has ended a statement: {' '.join(text.split())}")


async def take_due_timers(
    connection: asyncpg.Connection, lock_due: str, limit: int, since: datetime | None
) -> list[tuple[str, datetime, datetime, datetime]]:
    """`lock_due` locks of the given rows those that are due at a time, and returns when their timers are due next."""
    now = await connection.fetchval("SELECT clock_timestamp()")
    ids = [row[0] for row in await connection.fetch(_DUE, limit, now, since)]
    locked = await fetch_by_shard(connection, lock_due, ids, now)
    if locked:
        await connection.execute(_REARM, [row[0] for row in locked], [row[-1] for row in locked])
    return [(key, wake_at, deadline, now) for key, wake_at, deadline, _ in locked]
