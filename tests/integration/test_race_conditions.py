"""The six races, each with two real writers that decided on the same state, in both orders."""

from datetime import UTC, datetime

import pytest

from consumer.history.replay import replay
from consumer.lifecycle.model import Author, Conversation, Event, Outcome, Policy, Session, Status
from consumer.observability.metrics import Metrics
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from tests.builders import HOUR, MINUTE, SECOND, close, goodbye, message, tick
from tests.races import counted, race

NOW = datetime.now(UTC)
both_orders = pytest.mark.parametrize("timer_first", [True, False], ids=["timer first", "timer second"])


async def seed(store: PostgresStore, *events: Event) -> None:
    await ConversationService(store).apply(events)


async def run(
    store: PostgresStore, database: str, one: Event, other: Event, one_first: bool
) -> tuple[Outcome, Outcome, Metrics]:
    """Races the two events; the outcomes in the order of the arguments, whoever wrote first."""
    first, second = (one, other) if one_first else (other, one)
    (won,), (lost,), metrics = await race(database, [first], [second])
    return (won, lost, metrics) if one_first else (lost, won, metrics)


async def sessions(store: PostgresStore) -> list[Session]:
    """The sessions, once the history is seen to tell the same story: versions without gap, folding to the rows."""
    found, version = await store.conversation("c-1")
    history = await store.history("c-1")
    assert [row.version for row, _ in history] == list(range(1, version + 1))
    assert replay("c-1", history, Policy()) == Conversation("c-1", version, tuple(found))
    return found


async def test_the_writer_that_lost_is_counted_once_and_decides_again(store: PostgresStore, database: str) -> None:
    await seed(store, message(at=NOW - HOUR))

    _, _, metrics = await run(store, database, message(at=NOW), message(at=NOW), True)

    kind = "inbound-message"
    attempts = "conversation_write_attempts_total"
    assert counted(metrics, attempts, operation=kind, result="conflict") == 1
    assert counted(metrics, attempts, operation=kind, result="committed") == 2
    assert counted(metrics, "conversation_retries_total", operation=kind, reason="version") == 1
    assert counted(metrics, "conversation_operation_retries_sum", operation=kind) == 1
    assert counted(metrics, "conversation_operation_retries_count", operation=kind) == 2


class TestRace1TimerAgainstUserMessage:
    @both_orders
    async def test_a_message_from_before_the_deadline_keeps_the_session_open(
        self, store: PostgresStore, database: str, timer_first: bool
    ) -> None:
        await seed(store, message(at=NOW - 49 * HOUR))

        timer, user, metrics = await run(store, database, tick(NOW), message(at=NOW - 47 * HOUR), timer_first)

        (session,) = await sessions(store)
        assert (session.status, session.user_messages) == (Status.PENDING, 2)
        assert session.last_user_message_at == NOW - 47 * HOUR
        assert user is (Outcome.REINSTATED if timer_first else Outcome.APPLIED)
        assert timer is (Outcome.APPLIED if timer_first else Outcome.EARLY)
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1

    @both_orders
    async def test_a_message_from_after_the_deadline_opens_the_next_session(
        self, store: PostgresStore, database: str, timer_first: bool
    ) -> None:
        await seed(store, message(at=NOW - 49 * HOUR))

        _, user, metrics = await run(store, database, tick(NOW), message(at=NOW), timer_first)

        expired, opened = await sessions(store)
        assert (expired.status, expired.closed_at) == (Status.EXPIRED, NOW - HOUR)
        assert (opened.status, opened.user_messages, user) == (Status.PENDING, 1, Outcome.APPLIED)
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


class TestRace2TimerAgainstManualClose:
    @both_orders
    async def test_the_report_says_agent_closed(self, store: PostgresStore, database: str, timer_first: bool) -> None:
        await seed(store, message(at=NOW - 49 * HOUR))

        closing = close(Status.AGENT_CLOSED, NOW, reason="solved")
        _, agent, metrics = await run(store, database, tick(NOW), closing, timer_first)

        (session,) = await sessions(store)
        assert (session.status, session.closed_by, session.close_reason) == (Status.AGENT_CLOSED, "agent", "solved")
        assert agent is Outcome.RECLASSIFIED
        assert counted(metrics, "conversation_write_attempts_total", operation="manual-close", result="committed") == 1
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


class TestRace3GoodbyeAgainstTimer:
    @both_orders
    async def test_the_report_says_user_closed(self, store: PostgresStore, database: str, timer_first: bool) -> None:
        await seed(store, message(at=NOW - 48 * HOUR - 2 * SECOND))

        _, user, metrics = await run(store, database, tick(NOW), goodbye(NOW), timer_first)

        (session,) = await sessions(store)
        assert (session.status, session.closed_by) == (Status.USER_CLOSED, "user")
        assert user is Outcome.RECLASSIFIED
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


class TestRace4SimultaneousMessages:
    @pytest.mark.parametrize("agent_first", [True, False], ids=["agent first", "agent second"])
    async def test_both_count_and_acceptance_happens_once(
        self, store: PostgresStore, database: str, agent_first: bool
    ) -> None:
        await seed(store, message(at=NOW - HOUR))

        answer, another = message(Author.AGENT, NOW), message(Author.SUPPORT, NOW + SECOND)
        _, _, metrics = await run(store, database, answer, another, agent_first)

        (session,) = await sessions(store)
        assert (session.status, session.agent_messages) == (Status.PROGRESS, 2)
        assert session.accepted_by is (Author.AGENT if agent_first else Author.SUPPORT)
        transitions = [row for row, _ in await store.history("c-1") if row.is_transition]
        assert [row.to_status for row in transitions] == [Status.PENDING, Status.PROGRESS]
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1

    async def test_the_first_two_messages_of_a_conversation_open_one_session(
        self, store: PostgresStore, database: str
    ) -> None:
        _, _, metrics = await run(store, database, message(at=NOW), message(at=NOW), True)

        (session,) = await sessions(store)
        assert session.user_messages == 2
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1


class TestRace5TwoTimers:
    async def test_one_transition_one_row(self, store: PostgresStore, database: str) -> None:
        await seed(store, message(at=NOW - 49 * HOUR))

        first, second, metrics = await run(store, database, tick(NOW), tick(NOW), True)

        (session,) = await sessions(store)
        assert session.status is Status.EXPIRED
        assert (first, second) == (Outcome.APPLIED, Outcome.NOOP)
        assert [row.to_status for row, _ in await store.history("c-1")] == [Status.PENDING, Status.EXPIRED]
        assert counted(metrics, "conversation_write_attempts_total", operation="tick", result="conflict") == 1
        assert counted(metrics, "conversation_write_attempts_total", operation="tick", result="committed") == 1


class TestRace6CloseAgainstNewerMessage:
    @pytest.mark.parametrize("close_first", [True, False], ids=["close first", "message first"])
    async def test_the_message_ends_up_in_an_open_session(
        self, store: PostgresStore, database: str, close_first: bool
    ) -> None:
        await seed(store, message(at=NOW - HOUR))

        closing, newer = close(Status.AGENT_CLOSED, NOW - MINUTE), message(at=NOW)
        agent, user, metrics = await run(store, database, closing, newer, close_first)

        closed, opened = await sessions(store)
        assert (closed.status, closed.closed_at, closed.user_messages) == (Status.AGENT_CLOSED, NOW - MINUTE, 1)
        assert (opened.status, opened.opened_at, opened.user_messages) == (Status.PENDING, NOW, 1)
        assert (agent, user) == (Outcome.APPLIED, Outcome.APPLIED)
        assert counted(metrics, "conversation_write_attempts_total", result="conflict") == 1
