"""State-dependent timers on the database's clock: 48 h pending, 24 h progress, 15 min to idle."""

from datetime import UTC, datetime, timedelta

import pytest

from consumer.lifecycle.model import Author, Event, Outcome, Policy, Session, Status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, SECOND, close, message, tick

NOW = datetime.now(UTC)


async def session_after(store: PostgresStore, *events: Event) -> Session:
    await ConversationService(store).apply(events)
    sessions, _ = await store.conversation("c-1")
    return sessions[-1]


@pytest.mark.parametrize(
    ("age", "status"),
    [(48 * HOUR - MINUTE, Status.PENDING), (48 * HOUR + MINUTE, Status.EXPIRED)],
)
async def test_an_unanswered_conversation_expires_after_48_hours(
    store: PostgresStore, age: timedelta, status: Status
) -> None:
    session = await session_after(store, message(at=NOW - age), tick(NOW))

    assert session.status is status
    assert session.close_reason == (None if status.is_open else "pending_ttl")


@pytest.mark.parametrize(
    ("age", "status"),
    [
        (15 * MINUTE - 30 * SECOND, Status.PROGRESS),
        (16 * MINUTE, Status.IDLE_TIMEOUT),
        (24 * HOUR - MINUTE, Status.IDLE_TIMEOUT),
        (24 * HOUR + MINUTE, Status.EXPIRED),
    ],
)
async def test_an_answered_conversation_idles_then_expires(
    store: PostgresStore, age: timedelta, status: Status
) -> None:
    session = await session_after(store, message(at=NOW - age), message(Author.AGENT, NOW - age), tick(NOW))

    assert session.status is status
    assert session.close_reason == (None if status.is_open else "progress_ttl")


async def test_each_message_renews_the_timer(store: PostgresStore) -> None:
    session = await session_after(store, message(at=NOW - 60 * HOUR), message(at=NOW - 20 * HOUR), tick(NOW))

    assert (session.status, session.expires_at) == (Status.PENDING, NOW + 28 * HOUR)


async def test_a_closed_conversation_has_no_timer(store: PostgresStore) -> None:
    session = await session_after(store, message(at=NOW - HOUR), close(at=NOW - MINUTE), tick(NOW))

    assert (session.status, session.idle_at, session.expires_at) == (Status.AGENT_CLOSED, None, None)


async def test_a_tick_dated_in_the_future_expires_nothing_early(store: PostgresStore) -> None:
    service = ConversationService(store)
    await service.apply([message(at=NOW - 47 * HOUR)])

    assert await service.apply([tick(NOW + 5 * HOUR)]) == [Outcome.EARLY]


async def test_a_message_dated_in_the_future_is_clamped_to_the_databases_clock(store: PostgresStore) -> None:
    session = await session_after(store, message(at=datetime.now(UTC) + HOUR))

    assert session.opened_at < datetime.now(UTC) + MINUTE


async def test_without_any_tick_the_next_event_settles_what_was_due(store: PostgresStore) -> None:
    service = ConversationService(store)
    await service.apply([message(at=NOW - 72 * HOUR), message(Author.AGENT, NOW - 72 * HOUR), message(at=NOW)])

    sessions, _ = await store.conversation("c-1")

    assert [session.status for session in sessions] == [Status.EXPIRED, Status.PENDING]
    assert sessions[0].closed_at == NOW - 48 * HOUR


async def test_durations_are_settings(store: PostgresStore) -> None:
    quick = ConversationService(store, policy=Policy(pending_ttl=timedelta(milliseconds=1)))

    assert await quick.apply([message(at=NOW - SECOND), tick(NOW)]) == [Outcome.APPLIED, Outcome.APPLIED]
    assert (await store.conversation("c-1"))[0][0].status is Status.EXPIRED
