"""What the reports ask: the sessions and the races of a period, counted by the database."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import NamedTuple

import asyncpg

from consumer.lifecycle.model import Status

SECONDS = 600.0
"""Limit on a report: it reads more than a writer does, and may take longer."""
# Writers look every row up by its key; a report reads whole tables, and how depends on its period.
_FOR_REPORTS = f"""
    SET LOCAL statement_timeout = '{SECONDS:.0f}s'; SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on;
    SET LOCAL enable_mergejoin = on; SET LOCAL plan_cache_mode = force_custom_plan; SET TRANSACTION READ ONLY"""
_OPENED = "SELECT count(*) FROM conversation_session WHERE opened_at >= $1 AND opened_at < $2"
_CLOSINGS = """
    SELECT (closed_at AT TIME ZONE 'UTC')::date, status, close_reason, count(*) FROM conversation_session
    WHERE closed_at >= $1 AND closed_at < $2 GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"""
_ACCEPTANCES = """
    SELECT count(*), percentile_cont(0.5) WITHIN GROUP (ORDER BY seconds),
        percentile_cont(0.9) WITHIN GROUP (ORDER BY seconds)
    FROM (
        SELECT extract(epoch FROM accepted_at - opened_at)::float AS seconds FROM conversation_session
        WHERE accepted_at >= $1 AND accepted_at < $2
    ) AS accepted"""
# As the view `conversation_report` has it, but only of the conversations that closed in the period.
_TIME_BY_STATUS = """
    WITH closed AS MATERIALIZED (
        SELECT conversation_id, session, closed_at FROM conversation_session WHERE closed_at >= $1 AND closed_at < $2
    ), stretch AS (
        SELECT conversation_id, session, to_status AS status, occurred_at AS since, min(occurred_at) OVER (
            PARTITION BY conversation_id, session ORDER BY version ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS until
        FROM conversation_event JOIN (SELECT DISTINCT conversation_id FROM closed) AS c USING (conversation_id)
        WHERE from_status IS DISTINCT FROM to_status
    )
    SELECT status, sum(greatest(0, extract(epoch FROM least(until, closed_at) - since)))::float
    FROM stretch JOIN closed USING (conversation_id, session)
    WHERE status IN ('pending', 'progress', 'idle_timeout') GROUP BY 1"""
_RACES = """
    SELECT (recorded_at AT TIME ZONE 'UTC')::date, race, count(*) FROM race_report
    WHERE recorded_at >= $1 AND recorded_at < $2 GROUP BY 1, 2 ORDER BY 1, 2"""
_EVENTS = """
    SELECT count(*) FROM conversation_event WHERE recorded_at >= $1 AND recorded_at < $2 AND source <> 'consumer'"""


class Closings(NamedTuple):
    """How many sessions closed on a day, UTC, in a status and for a reason."""

    day: date
    status: str
    reason: str | None
    sessions: int


@dataclass(frozen=True, slots=True)
class ConversationReport:
    """The sessions of a period: opened, accepted, closed in it. The time by status is that of those closed."""

    opened: int
    closings: Sequence[Closings]
    accepted: int
    median_seconds: float | None
    p90_seconds: float | None
    seconds_by_status: dict[str, float]

    @property
    def closed(self) -> int:
        return sum(closings.sessions for closings in self.closings)


class Races(NamedTuple):
    """How many races of a kind were decided on a day, UTC."""

    day: date
    race: str
    events: int


@dataclass(frozen=True, slots=True)
class RaceReport:
    """The races of a period, and all events with an effect in it."""

    races: Sequence[Races]
    events: int


async def conversation_report(connection: asyncpg.Connection, since: datetime, until: datetime) -> ConversationReport:
    """In a transaction that is used for nothing else."""
    await connection.execute(_FOR_REPORTS)
    opened = await connection.fetchval(_OPENED, since, until, timeout=SECONDS)
    closings = [Closings(*row) for row in await connection.fetch(_CLOSINGS, since, until, timeout=SECONDS)]
    accepted, median, p90 = await connection.fetchrow(_ACCEPTANCES, since, until, timeout=SECONDS)
    spent = dict(await connection.fetch(_TIME_BY_STATUS, since, until, timeout=SECONDS))
    seconds = {status.value: spent.get(status, 0.0) for status in Status if status.is_open}
    return ConversationReport(opened, closings, accepted, median, p90, seconds)


async def race_report(connection: asyncpg.Connection, since: datetime, until: datetime) -> RaceReport:
    """In a transaction that is used for nothing else."""
    await connection.execute(_FOR_REPORTS)
    races = [Races(*row) for row in await connection.fetch(_RACES, since, until, timeout=SECONDS)]
    return RaceReport(races, await connection.fetchval(_EVENTS, since, until, timeout=SECONDS))
