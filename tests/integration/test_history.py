"""Conversations compared with their history, repaired and forgotten, while workers and other writers go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from consumer.commands.rebuild import repair_now
from consumer.decoding import encoded
from consumer.errors import ContentionError
from consumer.history.comparison import Finding, Result, Stored, compare
from consumer.lifecycle.model import Author, Conversation, Event, Kind, Policy, Status
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, StoredOffset
from consumer.postgres import repair
from consumer.postgres.store import PostgresStore
from consumer.service.ports import Locking
from consumer.service.service import ConversationService, decide
from consumer.settings import WorkerSettings
from consumer.worker import PartitionWorker
from tests.builders import HOUR, MINUTE, close, message
from tests.checker import evidence, verdicts
from tests.checker.ledger import Evidence
from tests.conftest import opened
from tests.e2e.conftest import until
from tests.fuzz.__main__ import Letters
from tests.integration.test_postgres import LOCK_C1, PLACE, apply, outsider, rows
from tests.memory_log import MemoryLog
from tests.stack.database import execute

NOW = datetime.now(UTC)
POLICY = Policy()
TABLES = ("conversation", "conversation_session_archive", "conversation_event", "transition_outbox")
TWO_SESSIONS: list[Event] = [
    message(at=NOW - 3 * HOUR, event_id="first"),
    close(at=NOW - 2 * HOUR, event_id="closing"),
    message(at=NOW - HOUR, event_id="second"),
    message(Author.AGENT, NOW - HOUR + MINUTE, event_id="answer"),
]
DAMAGES = {
    "a status that somebody set": "UPDATE conversation SET status = 'pending', idle_at = NULL",
    "counters": "UPDATE conversation SET user_messages = 9, agent_messages = 0",
    "a closing by hand": "UPDATE conversation SET status = 'failed', closed_at = now(), expires_at = NULL",
    "another session": "UPDATE conversation SET session = 1",
    "a version behind": "UPDATE conversation SET version = 2",
    "no timer": "UPDATE conversation SET wake_at = NULL",
    "no row": "DELETE FROM conversation",
    "no archive": "DELETE FROM conversation_session_archive",
    "a changed archive": "UPDATE conversation_session_archive SET closed_by = 'nobody'",
    "a session too many": (
        "INSERT INTO conversation_session_archive (conversation_id, session, status, opened_at, last_activity_at, "
        "user_messages, agent_messages) VALUES ('c-1', 7, 'failed', now(), now(), 0, 0)"
    ),
}


async def stored(store: PostgresStore, conversation_id: str = "c-1") -> Stored:
    (found,) = await store.stored([conversation_id])
    return found


async def compared(store: PostgresStore) -> Finding:
    return compare(await stored(store), POLICY)


async def broken_invariants(database: str) -> list[str]:
    """Of the checker, which knows nothing of repairs."""
    found, histories = await evidence.conversations(database)
    judged = verdicts._conversations(Evidence(found, histories, [], [], {}, []), POLICY)
    return [verdict.invariant for verdict in judged if not verdict.holds]


@asynccontextmanager
async def working(store: PostgresStore) -> AsyncIterator[MemoryLog]:
    """A worker with its cache, on one partition."""
    log = MemoryLog(PLACE)
    service = ConversationService(store, policy=POLICY)
    worker = PartitionWorker(
        log, service, store, Letters(), settings=WorkerSettings(), metrics=Metrics(), health=Health()
    )
    running = asyncio.create_task(worker.run())
    try:
        yield log
    finally:
        log.revoke()
        await asyncio.wait_for(running, 30)


async def consumed(store: PostgresStore, log: MemoryLog, *events: Event) -> None:
    """Waits until the worker has applied `events` and all before them."""
    log.append(encoded(event) for event in events)

    async def has_applied() -> bool:
        offset = await store.stored_offset(log.partition)
        return offset is not None and offset.next_offset == log.end

    await until(has_applied, "the worker has applied everything", 30)


class TestRebuild:
    @pytest.mark.parametrize("damage", DAMAGES)
    async def test_damage_is_found_and_repaired(self, store: PostgresStore, database: str, damage: str) -> None:
        await apply(store, *TWO_SESSIONS)
        before = (await stored(store)).conversation
        await execute(database, DAMAGES[damage])
        assert (await compared(store)).result is Result.DIFFERS

        assert await repair_now(store, "c-1", POLICY)

        after = await stored(store)
        assert (await compared(store)).result is Result.EQUAL
        assert after.conversation == before._replace(version=5)
        assert after.wake_at
        assert await broken_invariants(database) == []

    async def test_a_repair_is_a_version_with_a_row_that_publishes_nothing(
        self, store: PostgresStore, database: str
    ) -> None:
        await apply(store, *TWO_SESSIONS)
        outbox = await rows(database, "SELECT count(*) FROM transition_outbox")
        await execute(database, DAMAGES["counters"])

        await repair_now(store, "c-1", POLICY)

        row, _ = (await store.history("c-1"))[-1]
        assert (row.version, row.kind, row.source, row.event_id, row.actor) == (
            5,
            Kind.REPAIR,
            "consumer",
            "5",
            "operator",
        )
        assert (row.from_status, row.to_status, row.session) == (Status.PROGRESS, Status.PROGRESS, 2)
        assert await rows(database, "SELECT count(*) FROM transition_outbox") == outbox

    async def test_what_is_as_its_history_says_is_not_written(self, store: PostgresStore) -> None:
        await apply(store, *TWO_SESSIONS)

        await repair_now(store, "c-1", POLICY)

        assert (await stored(store)).version == 4

    async def test_a_pruned_history_repairs_nothing(self, store: PostgresStore, database: str) -> None:
        await apply(store, *TWO_SESSIONS)
        await execute(database, DAMAGES["counters"])
        await execute(database, "DELETE FROM conversation_event WHERE version = 1")

        assert not await repair_now(store, "c-1", POLICY)

        assert (await stored(store)).version == 4
        assert (await compared(store)).result is Result.NOT_WHOLE

    async def test_a_writer_that_comes_in_between_wins(self, store: PostgresStore, database: str) -> None:
        await apply(store, *TWO_SESSIONS)
        await execute(database, DAMAGES["counters"])
        finding = await compared(store)
        assert finding.target
        await apply(store, message(at=NOW - HOUR + 2 * MINUTE))

        with pytest.raises(ContentionError):
            await store.write_repaired(finding.target, loaded=4)

        assert (await stored(store)).version == 5

    async def test_a_writer_that_read_the_damage_decides_again(self, store: PostgresStore, database: str) -> None:
        """It has loaded the row at the version that the repair replaces."""
        await apply(store, *TWO_SESSIONS)
        await execute(database, DAMAGES["counters"])

        async with opened(database) as other:
            event = message(at=NOW)
            async with other.attempt({"c-1": [event]}, None, Locking.OPTIMISTIC) as attempt:
                await repair_now(store, "c-1", POLICY)
                lost = await attempt.save(decide(attempt.snapshot, {"c-1": [event]}, POLICY))

        assert lost == {"c-1": "version"}

    async def test_a_cached_conversation_is_not_taken_for_the_repaired_one(
        self, store: PostgresStore, database: str
    ) -> None:
        """The worker has read the damage, and written with it: only a new version makes it read again."""
        await apply(store, *TWO_SESSIONS)
        await execute(database, DAMAGES["counters"])
        async with working(store) as log:
            await consumed(store, log, message(at=NOW - 9 * MINUTE))
            await repair_now(store, "c-1", POLICY)
            await consumed(store, log, message(at=NOW - 8 * MINUTE))

        assert (await compared(store)).result is Result.EQUAL
        assert (await stored(store)).conversation.sessions[-1].user_messages == 3
        assert await broken_invariants(database) == []

    async def test_repairs_and_writers_at_once_leave_every_invariant(self, store: PostgresStore, database: str) -> None:
        await apply(store, *TWO_SESSIONS)

        async def write(number: int) -> None:
            for count in range(15):
                await apply(store, message(at=NOW - MINUTE, event_id=f"w-{number}-{count}"))

        async def damage_and_repair() -> None:
            for _ in range(10):
                await execute(database, "UPDATE conversation SET close_reason = 'damaged'")
                await repair_now(store, "c-1", POLICY)

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(write(number))
            group.create_task(damage_and_repair())
        await repair_now(store, "c-1", POLICY)

        assert (await compared(store)).result is Result.EQUAL
        assert (await stored(store)).conversation.sessions[-1].user_messages == 46
        assert await broken_invariants(database) == []

    async def test_a_held_row_is_contention(self, store: PostgresStore, database: str) -> None:
        await apply(store, *TWO_SESSIONS)
        await execute(database, DAMAGES["counters"])
        finding = await compared(store)
        assert finding.target

        async with outsider(database, LOCK_C1):
            with pytest.raises(ContentionError):
                await store.write_repaired(finding.target, loaded=4)

    async def test_every_id_is_visited_once_also_without_a_row(self, store: PostgresStore, database: str) -> None:
        for number in range(7):
            await apply(store, *(event._replace(conversation_id=f"c-{number}") for event in TWO_SESSIONS))
        await execute(database, "DELETE FROM conversation WHERE conversation_id IN ('c-0', 'c-3', 'c-6')")
        await execute(database, "DELETE FROM conversation_event WHERE conversation_id = 'c-3'")

        ids, last = list[str](), ""
        while page := await store.ids_after(last, 2):
            ids += page
            last = page[-1]

        assert ids == [f"c-{number}" for number in range(7)]
        assert await store.about_how_many() == 4


class TestForget:
    async def left(self, database: str, conversation_id: str) -> dict[str, int]:
        of_it = f"WHERE conversation_id = '{conversation_id}'"
        return {t: (await rows(database, f"SELECT count(*) FROM {t} {of_it}"))[0][0] for t in TABLES}

    async def test_every_row_of_it_goes_and_nothing_of_others(self, store: PostgresStore, database: str) -> None:
        others = [event._replace(conversation_id="c-2") for event in TWO_SESSIONS]
        await apply(store, *TWO_SESSIONS, *others)
        kept = await self.left(database, "c-2")

        counted, gone = await store.count_rows("c-1"), await store.forget("c-1")

        assert gone == counted == kept
        assert all(kept.values())
        assert await self.left(database, "c-1") == dict.fromkeys(TABLES, 0)
        assert await self.left(database, "c-2") == kept
        assert (await stored(store, "c-2")).version == 4

    async def test_no_column_of_any_table_holds_the_id(self, store: PostgresStore, database: str) -> None:
        """Also of tables that come later."""
        await apply(store, *(event._replace(conversation_id="somebody-4711") for event in TWO_SESSIONS))
        tables = await rows(
            database,
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'm') AND relnamespace = 'public'::regnamespace",
        )
        holding = "SELECT count(*) FROM {} AS t WHERE t::text LIKE '%somebody-4711%'"
        assert sum([(await rows(database, holding.format(name)))[0][0] for (name,) in tables]) > 4

        await store.forget("somebody-4711")

        assert [name for (name,) in tables if (await rows(database, holding.format(name)))[0][0]] == []

    async def test_a_later_event_starts_anew(self, store: PostgresStore) -> None:
        await apply(store, *TWO_SESSIONS)
        await store.forget("c-1")

        await apply(store, message(at=NOW))

        after = await stored(store)
        assert (after.version, after.conversation.sessions[-1].number, len(after.history)) == (1, 1, 1)
        assert compare(after, POLICY).result is Result.EQUAL

    async def comes_round(self, store: PostgresStore) -> Conversation:
        """A worker caches version 2; forgotten, the id reaches version 2 by another writer; then the worker goes on."""
        async with working(store) as log:
            await consumed(store, log, message(at=NOW - 3 * HOUR), message(at=NOW - 2 * HOUR))
            await store.forget("c-1")
            await apply(store, message(Author.AGENT, NOW - HOUR), close(at=NOW - 50 * MINUTE))
            assert (await stored(store)).version == 2
            await consumed(store, log, message(at=NOW - MINUTE))
        return (await stored(store)).conversation

    async def test_a_cached_version_never_comes_round_again(self, store: PostgresStore, database: str) -> None:
        conversation = await self.comes_round(store)

        assert [(one.status, one.user_messages) for one in conversation.sessions] == [
            (Status.AGENT_CLOSED, 0),
            (Status.PENDING, 1),
        ]
        assert await broken_invariants(database) == []

    async def test_without_new_fencing_tokens_it_would(
        self, store: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repair, "_RENEW_TOKENS", "SELECT $1::bigint")

        conversation = await self.comes_round(store)

        assert [one.user_messages for one in conversation.sessions] == [3]
        assert "the history folds to the rows" in await broken_invariants(database)

    async def test_the_tokens_of_every_group_are_renewed(self, store: PostgresStore, database: str) -> None:
        await apply(store, *TWO_SESSIONS)
        for place in (PLACE, Partition("another", "events", 1)):
            await store.create_offset(place, StoredOffset("cluster", 5))
        before = dict(await rows(database, "SELECT consumer_group, mark FROM kafka_offset"))

        await store.forget("c-1")

        after = await rows(database, "SELECT consumer_group, mark, next_offset FROM kafka_offset")
        assert {group for group, mark, _ in after if mark != before[group]} == {"group", "another"}
        assert {offset for _, _, offset in after} == {5}

    async def test_a_worker_that_goes_on_meanwhile_loses_and_repeats_nothing(
        self, store: PostgresStore, database: str
    ) -> None:
        async with working(store) as log:
            for number in range(20):
                events = [message(at=NOW - HOUR, conversation_id=f"c-{n}", event_id=f"{number}-{n}") for n in range(9)]
                log.append(encoded(event) for event in events)
                await store.forget("c-8")
            await consumed(store, log)

        kept = await rows(database, "SELECT conversation_id, version FROM conversation WHERE conversation_id <> 'c-8'")
        assert sorted(kept) == [(f"c-{n}", 20) for n in range(8)]
        assert await broken_invariants(database) == []

    async def test_it_waits_for_the_turn_of_a_relay(self, store: PostgresStore, database: str) -> None:
        """A relay that has read its transitions may publish them: none may be deleted under it."""
        await apply(store, *TWO_SESSIONS)

        async def waits() -> bool:
            return bool(await rows(database, "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))

        async with opened(database) as other, other.turn(10, 30) as batch:
            assert batch
            forgetting = asyncio.create_task(store.forget("c-1"))
            await until(waits, "it waits for the turn", 4)
            await batch.delete()

        assert (await asyncio.wait_for(forgetting, 10))["transition_outbox"] == 0

    async def test_a_held_row_is_contention(
        self, store: PostgresStore, database: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(repair, "_LOCK_TIMEOUT", "SET LOCAL lock_timeout = 100")
        await apply(store, *TWO_SESSIONS)

        async with outsider(database, LOCK_C1):
            with pytest.raises(ContentionError):
                await store.forget("c-1")

        assert all((await self.left(database, "c-1")).values())
