"""Rows that somebody else holds: named once they are held for long, and no longer than that."""

import asyncio
from datetime import UTC, datetime

import pytest
from structlog.testing import capture_logs

from consumer.lifecycle.model import Conversation, Policy
from consumer.lifecycle.rules import fold
from consumer.locked_rows import LOCKED_SECONDS, MOST_NAMED, LockedRows
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.records import Record
from consumer.service.batch import Batch
from consumer.service.ports import LockHolder
from tests.builders import message
from tests.races import counted

pytestmark = pytest.mark.virtual_time
NOW = datetime(2026, 3, 1, tzinfo=UTC)
EVENT = message(at=NOW, conversation_id="c-1")
GOOD = [(Record("events", 0, 7, 0, b"c-1", b"{}"), EVENT)]
HOLDER = LockHolder(17, "psql", "app", None, "idle in transaction")


class Subject:
    """The rows that `events[0]` waits for; `holder` holds that of c-1."""

    def __init__(self) -> None:
        self.health, self.metrics, self.asked = Health(), Metrics(), 0
        self.holder: LockHolder | None = HOLDER
        self.rows = LockedRows("events[0]", self.lock_holder, self.metrics, self.health)
        self.batch = Batch([EVENT])

    async def lock_holder(self, conversation_id: str) -> LockHolder | None:
        self.asked += 1
        return self.holder

    async def lose(self, reason: str) -> None:
        self.batch.lose([(fold(Conversation("c-1"), [EVENT], (), Policy(), NOW), reason)])
        await self.rows.report(self.batch, GOOD)

    async def wait_for_long(self) -> None:
        """Until its next lost race is one too long."""
        await self.lose("lock")
        await asyncio.sleep(LOCKED_SECONDS + 1)

    @property
    def blocked(self) -> float:
        return counted(self.metrics, "conversation_blocked_conversations")


async def test_a_row_that_is_held_for_a_moment_is_nobodys_business() -> None:
    subject = Subject()

    await subject.lose("lock")
    await asyncio.sleep(LOCKED_SECONDS - 1)
    await subject.lose("lock")

    assert (subject.asked, subject.blocked, subject.health.blocked) == (0, 0, {})


async def test_who_holds_a_row_for_long_is_asked_for_once_and_named_until_it_is_free() -> None:
    subject = Subject()

    await subject.wait_for_long()
    await subject.lose("lock")
    await subject.lose("lock")
    named, blocked = dict(subject.health.blocked), subject.blocked
    subject.rows.clear()

    assert (named, blocked) == ({"events[0]": f"waits for a row that {HOLDER} holds"}, 1)
    assert (subject.asked, subject.blocked, subject.health.blocked) == (1, 0, {})


async def test_the_log_names_the_row_and_who_holds_it() -> None:
    subject = Subject()

    await subject.wait_for_long()
    with capture_logs() as lines:
        await subject.lose("lock")

    (line,) = lines
    assert (line["held_by"], line["conversation_id"], line["offset"]) == (str(HOLDER), "c-1", 7)


async def test_a_row_that_is_lost_to_another_version_is_free() -> None:
    subject = Subject()

    await subject.wait_for_long()
    await subject.lose("lock")
    await subject.lose("version")

    assert (subject.blocked, subject.health.blocked) == (0, {})


async def test_of_two_rows_the_one_that_is_still_held_is_named() -> None:
    subject, other = Subject(), LockHolder(18, "psql", "app", None, "active")
    second = message(at=NOW, conversation_id="c-2")
    changes = [
        (fold(Conversation(event.conversation_id), [event], (), Policy(), NOW), "lock") for event in (EVENT, second)
    ]
    good = [*GOOD, (Record("events", 0, 8, 0, b"c-2", b"{}"), second)]

    subject.batch.lose(changes)
    await asyncio.sleep(LOCKED_SECONDS + 1)
    subject.batch.lose(changes[:1])
    await subject.rows.report(subject.batch, good)
    subject.holder = other
    subject.batch.lose(changes)
    await asyncio.sleep(LOCKED_SECONDS + 1)
    subject.batch.lose(changes)
    await subject.rows.report(subject.batch, good)
    subject.batch.lose(changes[:1])
    await subject.rows.report(subject.batch, good)

    assert subject.health.blocked == {"events[0]": f"waits for a row that {HOLDER} holds"}
    assert subject.blocked == 1


async def test_nobody_is_blamed_where_nobody_holds_the_row_any_more() -> None:
    subject = Subject()
    subject.holder = None

    await subject.wait_for_long()
    await subject.lose("lock")

    assert (subject.blocked, subject.health.blocked) == (1, {})


async def test_of_many_rows_that_are_held_at_once_a_few_are_asked_about_and_all_count() -> None:
    subject, events = Subject(), [message(at=NOW, conversation_id=f"c-{number}") for number in range(1000)]
    batch = Batch(events)
    changes = [(fold(Conversation(event.conversation_id), [event], (), Policy(), NOW), "lock") for event in events]
    good = [(Record("events", 0, 0, 0, event.conversation_id.encode(), b"{}"), event) for event in events]

    for _ in range(2):
        batch.lose(changes)
        await asyncio.sleep(LOCKED_SECONDS + 1)
        await subject.rows.report(batch, good)

    assert (subject.asked, subject.blocked) == (MOST_NAMED, 1000)
    assert subject.health.blocked == {"events[0]": f"waits for a row that {HOLDER} holds"}
