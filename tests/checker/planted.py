"""A replica with a bug in it, to see the checker go red: `python -m tests.checker.planted BUG`.

The bugs live here, as subclasses and replaced statements of this process; production code has no switch for them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from consumer import settings
from consumer.commands.replica import consume
from consumer.errors import UnavailableError
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import Change, Conversation
from consumer.observability import logs
from consumer.offsets import Progress
from consumer.postgres import attempt as statements
from consumer.postgres import few
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.records import DeadLetter
from consumer.service.ports import Conversations, Decided, EventsById, Locking, Lost, Snapshot
from tests.checker.hooked_store import HookedStore

FREEZE_AT_ATTEMPT = 60
"""By then the log is busy, and will be for as long as the freeze lasts."""
NO_PRIMARY_KEY = "ALTER TABLE conversation_event DROP CONSTRAINT conversation_event_pkey"


class WithoutDeduplication(HookedStore):
    """Knows no event that was applied before. The primary key must go as well: `NO_PRIMARY_KEY`."""

    def began(self, attempt: PostgresAttempt, events: EventsById) -> None:
        attempt.snapshot = replace(attempt.snapshot, known={})


class WithoutRedeciding(HookedStore):
    """Writes what lost its race again, without deciding again."""

    few = -1

    def began(self, attempt: PostgresAttempt, events: EventsById) -> None:
        save = attempt.save

        async def regardless(decided: Decided) -> Lost:
            lost = await save(decided)
            fresh = await statements.load(attempt.connection, {key: events[key] for key in lost}, {})
            return await save(resumed(decided, lost, fresh)) if lost else lost

        attempt.save = regardless  # type: ignore[method-assign]


def resumed(decided: Decided, lost: Lost, fresh: Snapshot) -> Decided:
    """What lost its race under the version of now, as it was decided on the state of then."""
    losers = [change for change in decided.changes if change.after.id in lost]
    return Decided(fresh.now, [_moved(change, fresh.conversations[change.after.id].version) for change in losers])


class FrozenBeforeWriting(HookedStore):
    """Stops its process once, within a transaction; somebody has to wake it up.

    By then the transaction has been ended, and its events are applied by somebody else. Trying again it finds nothing
    to write, and moves the offset to where it would have been; here at once, before the rebalance can come in between.
    """

    attempts = 0

    async def before(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations
    ) -> None:
        FrozenBeforeWriting.attempts += bool(events)
        if FrozenBeforeWriting.attempts == FREEZE_AT_ATTEMPT:
            with suppress(UnavailableError):
                async with PostgresStore.attempt(self, events, progress, locking, cached):
                    os.kill(os.getpid(), signal.SIGSTOP)


def _moved(change: Change, version: int) -> Change:
    """The change as if it had been decided on `version`."""
    rows = tuple(row._replace(version=version + number) for number, row in enumerate(change.rows, start=1))
    before = change.before._replace(version=version)
    return change._replace(
        before=before,
        rows=rows,
        after=Conversation(change.after.id, version + len(rows), change.after.sessions),
    )


def plant_version() -> type[PostgresStore]:
    statements.UPDATE = replaced(statements.UPDATE, statements.VERSION_GUARD, "TRUE")
    few.WRITE = replaced(few.WRITE, statements.VERSION_GUARD, "TRUE")
    few.WRITE_AND_ADVANCE = replaced(few.WRITE_AND_ADVANCE, statements.VERSION_GUARD, "TRUE")
    return PostgresStore


def plant_no_guard() -> type[PostgresStore]:
    anywhere = "$4::bigint >= 0 AND $5::bigint >= 0"
    statements.ADVANCE_OFFSET = replaced(statements.ADVANCE_OFFSET, statements.OFFSET_GUARD, anywhere)
    few.WRITE_AND_ADVANCE = replaced(few.WRITE_AND_ADVANCE, statements.OFFSET_GUARD, anywhere)
    return PostgresStore


def replaced(statement: str, guard: str, other: str) -> str:
    """The statement with another guard. One that has no such guard would make a bug of nothing."""
    assert guard in statement
    return statement.replace(guard, other)


def plant_guard() -> type[PostgresStore]:
    plant_no_guard()
    return FrozenBeforeWriting


def plant_kept_buffer() -> type[PostgresStore]:
    """Goes on elsewhere in the log with what it has fetched from here."""

    def seek(self: AssignedPartition, offset: int) -> None:
        kept, size = list(self._buffer), self._buffered_bytes
        original(self, offset)
        self._buffer, self._buffered_bytes = kept, size

    original = AssignedPartition.seek
    AssignedPartition.seek = seek  # type: ignore[method-assign]
    return PostgresStore


def plant_unawaited() -> type[PostgresStore]:
    """Takes a dead letter for sent once it is in the producer's buffer."""

    async def send(self: KafkaProducer, dead_letters: Sequence[DeadLetter]) -> None:
        async with self._sending() as client:
            for dead_letter in dead_letters:
                await self._enqueue(client, dead_letter)

    KafkaProducer.send = send  # type: ignore[method-assign]
    return PostgresStore


BUGS: dict[str, Callable[[], type[PostgresStore]]] = {
    "version": plant_version,
    "dedup": lambda: WithoutDeduplication,
    "guard": plant_guard,
    "no-guard": plant_no_guard,
    "redecide": lambda: WithoutRedeciding,
    "kept-buffer": plant_kept_buffer,
    "unawaited": plant_unawaited,
}
OF_THE_OTHERS = {"guard": "no-guard"}
"""What the second replica gets where it differs: one that freezes needs one that goes on in its place."""


def main(bug: str) -> None:
    found = settings.load()
    logs.configure(found.log)
    asyncio.run(consume(found, BUGS[bug]()))


if __name__ == "__main__":
    main(sys.argv[1])
