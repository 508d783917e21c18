"""`what-if` on histories that the service stored, on real PostgreSQL."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from consumer.commands.what_if import compare
from consumer.commands.what_if_report import Result
from consumer.lifecycle.model import Author, Policy, Status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings, Settings
from tests.builders import HOUR, close, message
from tests.replay.__main__ import check
from tests.replay.stored_traffic import rows
from tests.stack.database import execute

NOW = datetime.now(UTC)
POLICY = Policy()
SHORTER = replace(POLICY, pending_ttl=12 * HOUR)


async def result(database: str, since: str | None = None) -> Result:
    settings = Settings(database=DatabaseSettings(url=database))
    return await compare(settings, (POLICY, SHORTER), since=since, examples=5)


async def store_answers(store: PostgresStore, database: str, conversation_id: str, days_ago: int) -> None:
    """A question, its answer 20 hours later, and a close: decided when they were written."""
    at = NOW - days_ago * 24 * HOUR
    events = (message(at=at), message(Author.AGENT, at + 20 * HOUR), close(at=at + 21 * HOUR))
    for event in events:
        await ConversationService(store).apply([event._replace(conversation_id=conversation_id)])
    await execute(
        database,
        "UPDATE conversation_event SET recorded_at = occurred_at WHERE recorded_at > occurred_at "
        f"AND conversation_id = '{conversation_id}'",
    )


async def test_under_the_policy_in_force_nothing_differs_from_what_is_stored(database: str) -> None:
    assert (await check(database, 100_000)).decided > 80_000


async def test_a_history_longer_than_a_page_goes_on_in_the_next(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumer.postgres.histories.PAGE_ROWS", 50)
    monkeypatch.setattr("consumer.postgres.histories.SCANNED_CONVERSATIONS", 7)

    assert (await check(database, 6000)).decided > 4000


async def test_it_writes_nothing(store: PostgresStore, database: str) -> None:
    await store_answers(store, database, "c-1", days_ago=3)
    tables = "SELECT (SELECT array_agg(c) FROM conversation c), (SELECT array_agg(e) FROM conversation_event e)"
    before = await rows(database, tables)

    await result(database)

    assert await rows(database, tables) == before


async def test_only_conversations_with_an_event_in_the_period_take_part(store: PostgresStore, database: str) -> None:
    await store_answers(store, database, "old", days_ago=30)
    await store_answers(store, database, "new", days_ago=3)

    found = (await result(database)).tally

    assert (found.conversations, found.otherwise, found.not_as_stored) == (1, 1, 0)
    assert [ends.conversation_id for ends in found.examples] == ["new"]
    assert found.sessions_after == {Status.EXPIRED: 1, Status.AGENT_CLOSED: 1}


async def test_a_conversation_that_began_before_the_period_starts_as_it_was(
    store: PostgresStore, database: str
) -> None:
    await store_answers(store, database, "c-1", days_ago=3)

    found = (await result(database, since=(NOW - 3 * 24 * HOUR + HOUR).isoformat())).tally

    assert (found.conversations, found.events, found.otherwise, found.not_as_stored) == (1, 2, 0, 0)


async def test_after_pruning_it_starts_with_the_next_session_and_its_number(
    store: PostgresStore, database: str
) -> None:
    await store_answers(store, database, "c-1", days_ago=6)
    await store_answers(store, database, "c-1", days_ago=3)
    await execute(database, "DELETE FROM conversation_event WHERE version <= 2")

    found = (await result(database)).tally

    assert (found.left_out, found.events, found.not_as_stored) == (1, 3, 0)
    assert [[s.number for s in ends.after] for ends in found.examples] == [[2, 3]]
