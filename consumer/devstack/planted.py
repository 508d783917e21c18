"""A replica with a bug in it, to see the checker go red: `python -m consumer.devstack.planted BUG`.

The bugs live here, as subclasses and replaced statements of this process; production code has no switch for them.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace

from consumer import cli, logs, postgres, settings
from consumer.conversation import Change, Conversation
from consumer.postgres import PostgresStore
from consumer.service import Decided, EventsById, Lost, Progress, Snapshot

FREEZE_AT_EVENTS = 200
"""A load of so many events may freeze: by then the log is busy."""
NO_PRIMARY_KEY = "ALTER TABLE conversation_event DROP CONSTRAINT conversation_event_pkey"


class WithoutDeduplication(PostgresStore):
    """Knows no event that was applied before. The primary key must go as well: `NO_PRIMARY_KEY`."""

    async def load(self, events: EventsById) -> Snapshot:
        return replace(await super().load(events), known={})


class WithoutRedeciding(PostgresStore):
    """Writes what lost its race again, under the version of now, as it was decided on the state of then."""

    async def save(self, decided: Decided, progress: Progress | None) -> Lost:
        lost = await super().save(decided, progress)
        if not lost:
            return lost
        losers = [change for change in decided.changes if change.after.id in lost]
        fresh = await self.load({change.after.id: change.events for change in losers})
        moved = [_moved(change, fresh.conversations[change.after.id].version) for change in losers]
        return await super().save(Decided(fresh.now, moved), progress)


class FrozenBeforeWriting(PostgresStore):
    """Stops its process once, between a load and its write; somebody has to wake it up."""

    frozen = False

    async def load(self, events: EventsById) -> Snapshot:
        snapshot = await super().load(events)
        if not self.frozen and sum(map(len, events.values())) >= FREEZE_AT_EVENTS:
            FrozenBeforeWriting.frozen = True
            os.kill(os.getpid(), signal.SIGSTOP)
        return snapshot


def _moved(change: Change, version: int) -> Change:
    """The change as if it had been decided on `version`."""
    rows = tuple(replace(row, version=version + number) for number, row in enumerate(change.rows, start=1))
    before = replace(change.before, version=version)
    return replace(
        change,
        before=before,
        rows=rows,
        after=Conversation(change.after.id, version + len(rows), change.after.sessions),
    )


def plant_version() -> type[PostgresStore]:
    checked = " AND c.version = n.loaded"
    assert checked in postgres._UPDATE  # noqa: SLF001 - a planted bug reaches where it must
    postgres._UPDATE = postgres._UPDATE.replace(checked, "")  # noqa: SLF001
    return PostgresStore


def plant_guard() -> type[PostgresStore]:
    async def no_guard(*_: object) -> None:
        return None

    postgres._guard = no_guard  # type: ignore[assignment]  # noqa: SLF001
    return FrozenBeforeWriting


BUGS: dict[str, Callable[[], type[PostgresStore]]] = {
    "version": plant_version,
    "dedup": lambda: WithoutDeduplication,
    "guard": plant_guard,
    "redecide": lambda: WithoutRedeciding,
}


def main(bug: str) -> None:
    setattr(cli, PostgresStore.__name__, BUGS[bug]())
    found = settings.load()
    logs.configure(found.log)
    asyncio.run(cli.consume(found))


if __name__ == "__main__":
    main(sys.argv[1])
