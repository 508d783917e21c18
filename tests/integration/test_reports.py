"""The reports on known data: they say what happened, not what a timer thought."""

from datetime import UTC, datetime
from typing import Any

import asyncpg

from consumer.lifecycle.model import Author, Event, Status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, SECOND, close, goodbye, message, tick

NOW = datetime.now(UTC)
START = NOW - 49 * HOUR


async def apply(store: PostgresStore, *events: Event) -> None:
    for event in events:
        await ConversationService(store).apply([event])


async def rows(database: str, sql: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(database)
    try:
        return [dict(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


async def report(database: str) -> list[dict[str, Any]]:
    return await rows(database, "SELECT * FROM conversation_report ORDER BY session")


async def races(database: str) -> list[tuple[str, int, str]]:
    found = await rows(database, "SELECT race, version, to_status FROM race_report ORDER BY version")
    return [(row["race"], row["version"], row["to_status"]) for row in found]


async def test_time_is_told_by_status(store: PostgresStore, database: str) -> None:
    await apply(
        store,
        message(at=START),
        message(Author.AGENT, START + 5 * MINUTE),
        message(at=START + 10 * MINUTE),
        message(at=START + 40 * MINUTE),
        close(Status.SUPPORT_CLOSED, START + 45 * MINUTE, reason="solved", actor="support-9"),
    )

    (session,) = await report(database)

    assert (session["seconds_pending"], session["seconds_to_acceptance"]) == (300, 300)
    assert session["seconds_in_progress"] == 20 * 60 + 5 * 60
    assert session["seconds_idle"] == 15 * 60
    assert (session["status"], session["closed_by"], session["close_reason"]) == ("support_closed", "support", "solved")
    assert session["closed_by_actor"] == "support-9"


async def test_an_agents_close_is_never_reported_as_an_expiry(store: PostgresStore, database: str) -> None:
    await apply(store, message(at=START), tick(NOW), close(Status.AGENT_CLOSED, NOW, actor="agent-7"))

    (session,) = await report(database)

    assert (session["status"], session["closed_by_actor"]) == ("agent_closed", "agent-7")
    assert (session["reclassified_from"], session["reclassified_at"]) == ("expired", NOW)
    assert session["seconds_pending"] == 48 * 3600
    assert await races(database) == [("reclassified from expired", 3, "agent_closed")]


async def test_a_reinstated_session_counts_no_time_twice(store: PostgresStore, database: str) -> None:
    await apply(
        store, message(at=START), tick(NOW), message(at=START + 47 * HOUR), close(at=START + 48 * HOUR + MINUTE)
    )

    (session,) = await report(database)

    assert session["seconds_pending"] == 48 * 3600 + 60
    assert await races(database) == [("reinstated", 3, "pending")]


async def test_an_open_sessions_time_runs_on(store: PostgresStore, database: str) -> None:
    await apply(store, message(at=datetime.now(UTC) - HOUR))

    (session,) = await report(database)

    assert 3600 <= session["seconds_pending"] < 3700
    assert (session["closed_by_actor"], session["closed_at"]) == (None, None)


async def test_races_are_told_apart(store: PostgresStore, database: str) -> None:
    await apply(
        store,
        message(at=NOW - HOUR),
        close(Status.AGENT_CLOSED, NOW - 2 * HOUR),
        close(Status.AGENT_CLOSED, NOW - 90 * MINUTE),
        message(at=NOW - 110 * MINUTE),
        goodbye(NOW),
    )

    assert await races(database) == [
        ("split", 3, "pending"),
        ("outranked", 4, "agent_closed"),
        ("late", 5, "agent_closed"),
    ]
    assert [session["status"] for session in await report(database)] == ["agent_closed", "user_closed"]


async def test_an_ordinary_conversation_is_no_race(store: PostgresStore, database: str) -> None:
    await apply(store, goodbye(NOW - HOUR), message(at=NOW - MINUTE), close(at=NOW), close(Status.FAILED, NOW + SECOND))

    assert await races(database) == []


async def test_the_report_of_a_period_adds_up_to_the_view(store: PostgresStore, database: str) -> None:
    for number in range(3):
        at = START + number * HOUR
        events = (message(at=at), message(Author.AGENT, at + MINUTE), close(at=at + (20 + number) * MINUTE))
        await apply(store, *(event._replace(conversation_id=f"c-{number}") for event in events))

    found = await store.conversation_report(START, START + 2 * HOUR)

    in_period = [session for session in await report(database) if session["closed_at"] < START + 2 * HOUR]
    assert found.closed == len(in_period) == 2
    assert found.seconds_by_status == {
        "pending": sum(session["seconds_pending"] for session in in_period),
        "progress": sum(session["seconds_in_progress"] for session in in_period),
        "idle_timeout": sum(session["seconds_idle"] for session in in_period),
    }
    assert (found.accepted, found.median_seconds) == (2, 60)
