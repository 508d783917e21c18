"""The SQL against its stand-in: two clients of PostgreSQL and two of the dictionary, through the same random course.

What the simulation finds out on the stand-in is worth as much as this agreement.
"""

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import asyncpg
import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from consumer.errors import ConsumerError
from consumer.lifecycle.model import Author, Conversation, Event, Intent, Policy, Status
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.postgres.store import PostgresStore
from consumer.service.ports import Attempt, Locking, Snapshot
from consumer.service.service import decide
from tests.builders import HOUR, MINUTE, close, message, tick
from tests.conftest import opened
from tests.fakes import MemoryStore
from tests.memory_database import MemoryDatabase
from tests.stack.database import execute
from tests.stack.roles import as_owner

T = TypeVar("T")
NOW = datetime.now(UTC)
PLACE = Partition("group", "events", 0)
IDS = ("c-1", "c-2", "c-3")
EXAMPLES = 1000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 40
LOCK_TIMEOUT_SECONDS = 0.02
CLEAN = "TRUNCATE conversation, conversation_session_archive, conversation_event, transition_outbox, kafka_offset"
AGES = (timedelta(0), MINUTE, 16 * MINUTE, HOUR, 25 * HOUR, 49 * HOUR, 100 * HOUR)

same = st.fixed_dictionaries(
    {
        "conversation_id": st.sampled_from(IDS),
        "event_id": st.integers(1, 30).map(str),
        "at": st.sampled_from(AGES).map(lambda age: NOW - age),
    }
)
messages = st.builds(
    lambda author, intent, of: message(author, intent=intent, **of),
    st.sampled_from(list(Author)),
    st.sampled_from([None, None, Intent.CLOSE]),
    same,
)
closes = st.builds(
    lambda status, of: close(status, **of),
    st.sampled_from([Status.FAILED, Status.USER_CLOSED, Status.AGENT_CLOSED]),
    same,
)
ticks = st.builds(lambda of: tick(**of), same)
batches = st.lists(st.one_of(messages, messages, closes, ticks), min_size=1, max_size=4)
writers = st.sampled_from((0, 1))
guards = st.sampled_from(("none", "none", "held", "held", "stale"))


class Undone(Exception):  # noqa: N818 - what happens to the transaction
    """Rolls a transaction back."""


@dataclass
class Open:
    """An attempt of one writer, in both worlds."""

    events: dict[str, list[Event]]
    attempts: tuple[Attempt, Attempt]
    stack: AsyncExitStack
    progress: Progress | None


class Machine(RuleBasedStateMachine):
    url: str

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.resources = AsyncExitStack()
        self.database = MemoryDatabase(lambda: self.now)
        self.now = NOW
        self.open: dict[int, Open] = {}
        self.marks = 0
        self.run(self._start(self.url))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    async def _start(self, url: str) -> None:
        await execute(as_owner(url), CLEAN)
        stores = [
            await self.resources.enter_async_context(opened(url, lock_timeout_seconds=LOCK_TIMEOUT_SECONDS))
            for _ in range(2)
        ]
        self.pairs = [(store, MemoryStore(self.database)) for store in stores]
        self.reader: PostgresStore = stores[0]
        for store in (stores[0], self.pairs[0][1]):
            await store.create_offset(PLACE, StoredOffset("cluster", 0))

    def teardown(self) -> None:
        for writer in list(self.open):
            self.run(self._end(writer))
        self.run(self._compare_transitions())
        self.run(self.resources.aclose())
        self.runner.close()

    @rule(writer=writers, events=batches, locking=st.sampled_from(Locking), guard=guards)
    def begin(self, writer: int, events: list[Event], locking: Locking, guard: str) -> None:
        if writer not in self.open:
            self.run(self._begin(writer, events, locking, guard))

    async def _begin(self, writer: int, events: list[Event], locking: Locking, guard: str) -> None:
        by_id: dict[str, list[Event]] = {}
        for event in events:
            by_id.setdefault(event.conversation_id, []).append(event)
        progress = self._progress(len(events), guard == "stale") if guard != "none" else None
        stack, (real, model) = AsyncExitStack(), self.pairs[writer]
        one = await tried(stack.enter_async_context(real.attempt(by_id, progress, locking)))
        self.now = one.snapshot.now if not isinstance(one, tuple) else self.now
        other = await tried(stack.enter_async_context(model.attempt(by_id, progress, locking)))
        if isinstance(one, tuple) or isinstance(other, tuple):
            await stack.aclose()
            assert one == other
            return
        assert known(one.snapshot) == known(other.snapshot)
        self.open[writer] = Open(by_id, (one, other), stack, progress)

    def _progress(self, events: int, stale: bool) -> Progress:
        stored = self.database.offsets[PLACE]
        self.marks += 1
        return Progress(PLACE, stored.next_offset, stored.next_offset + events, stored.mark - stale, self.marks)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def save_and_commit(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(sorted(self.open)))
        self.run(self._save(writer))
        self.run(self._end(writer))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def save_and_wait(self, data: st.DataObject) -> None:
        """Its rows stay locked while the other goes on; then it commits, or is lost."""
        writer = data.draw(st.sampled_from(sorted(self.open)))
        if self.open[writer].events:
            self.run(self._save(writer))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        writer = data.draw(st.sampled_from(sorted(self.open)))
        self.run(self._end(writer, Undone()))

    async def _save(self, writer: int) -> None:
        course = self.open[writer]
        if not course.events:
            return
        decided = decide(course.attempts[0].snapshot, course.events, Policy())
        course.events = {}
        one, other = [await tried(attempt.save(decided)) for attempt in course.attempts]
        assert one == other
        if isinstance(one, tuple):
            await self._end(writer, Undone())

    async def _end(self, writer: int, error: Exception | None = None) -> None:
        if writer in self.open:
            stack = self.open.pop(writer).stack
            await tried(stack.__aexit__(type(error) if error else None, error, None))

    @rule(limit=st.integers(1, 3))
    def take_due_timers(self, limit: int) -> None:
        self.run(self._take_due_timers(limit))

    async def _take_due_timers(self, limit: int) -> None:
        real, model = self.pairs[0]
        due = await real.take_due_timers(limit)
        self.now = due[0].now if due else self.now
        mine = await model.take_due_timers(limit)
        assert sorted((a.conversation_id, a.deadline) for a in due) == sorted(
            (a.conversation_id, a.deadline) for a in mine
        )

    @invariant()
    def both_hold_the_same(self) -> None:
        self.run(self._compare())

    async def _compare_transitions(self) -> None:
        """Each transition in the history was put into the outbox, once."""
        connection = await asyncpg.connect(self.url)
        try:
            rows = await connection.fetch("SELECT conversation_id, version FROM transition_outbox")
        finally:
            await connection.close()
        histories = self.database.rows.items()
        expected = [(key, row.version) for key, history in histories for row, _ in history if row.is_transition]
        assert sorted(tuple(row) for row in rows) == sorted(expected)

    async def _compare(self) -> None:
        model = self.pairs[0][1]
        for key in IDS:
            assert await self.reader.conversation(key) == await model.conversation(key)
            assert await self.reader.history(key) == await model.history(key)
        assert await self.reader.stored_offset(PLACE) == await model.stored_offset(PLACE)


async def tried(work: Any) -> Any:
    """What comes of it, or the error that it raises, as something to compare."""
    try:
        return await work
    except ConsumerError as error:
        return type(error), getattr(error, "reason", None)
    except Undone:
        return None


def known(snapshot: Snapshot) -> tuple[dict[str, Conversation], dict[str, set[tuple[str, str]]]]:
    """What both worlds must have read alike: where nothing is known, one may say so and the other not."""
    return dict(snapshot.conversations), {key: set(ids) for key, ids in snapshot.known.items() if ids}


def test_postgresql_and_its_stand_in_take_the_same_course(database: str) -> None:
    Machine.url = database
    run_state_machine_as_test(Machine, settings=hypothesis.settings(max_examples=EXAMPLES, stateful_step_count=20))
