"""A replica with a bug in it, to see the checker go red: `python -m consumer.devstack.planted BUG`.

The bugs live here, as subclasses and replaced statements of this process; production code has no switch for them.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from consumer import cli, logs, postgres, settings
from consumer.conversation import Change, Conversation
from consumer.postgres import PostgresStore
from consumer.service import Decided, EventsById, Lost, Progress, Snapshot

FREEZE_AT_LOAD = 60
"""By then the log is busy, and will be for as long as the freeze lasts."""
THAW_SECONDS = 1.0
"""How long after the thaw a lost write is one that was in hand before it."""
NO_PRIMARY_KEY = "ALTER TABLE conversation_event DROP CONSTRAINT conversation_event_pkey"


class WithoutDeduplication(PostgresStore):
    """Knows no event that was applied before. The primary key must go as well: `NO_PRIMARY_KEY`."""

    async def load(self, events: EventsById) -> Snapshot:
        return replace(await super().load(events), known={})


class WithoutRedeciding(PostgresStore):
    """Writes what lost its race again, without deciding again."""

    async def save(self, decided: Decided, progress: Progress | None) -> Lost:
        return await saved_regardless(super().save, self.load, decided, progress)


async def saved_regardless(
    save: Callable[[Decided, Progress | None], Awaitable[Lost]],
    load: Callable[[EventsById], Awaitable[Snapshot]],
    decided: Decided,
    progress: Progress | None,
) -> Lost:
    """Writes what lost its race under the version of now, as it was decided on the state of then."""
    lost = await save(decided, progress)
    if not lost:
        return lost
    losers = [change for change in decided.changes if change.after.id in lost]
    fresh = await load({change.after.id: change.events for change in losers})
    moved = [_moved(change, fresh.conversations[change.after.id].version) for change in losers]
    return await save(Decided(fresh.now, moved), progress and replace(progress, mark=progress.next_mark))


class FrozenBeforeWriting(PostgresStore):
    """Stops its process once, between a load and its write; somebody has to wake it up.

    By then its events are applied by somebody else. Its retry would find that out and move the offset; here that
    happens at once, before the rebalance can come in between.
    """

    loads = 0
    thawed_at = float("-inf")

    async def load(self, events: EventsById) -> Snapshot:
        snapshot = await super().load(events)
        FrozenBeforeWriting.loads += bool(events)
        if FrozenBeforeWriting.loads == FREEZE_AT_LOAD:
            os.kill(os.getpid(), signal.SIGSTOP)
            FrozenBeforeWriting.thawed_at = time.monotonic()
        return snapshot

    async def save(self, decided: Decided, progress: Progress | None) -> Lost:
        lost = await super().save(decided, progress)
        if lost and time.monotonic() - FrozenBeforeWriting.thawed_at < THAW_SECONDS:
            return await super().save(Decided(decided.now, ()), progress)
        return lost


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


def plant_no_guard() -> type[PostgresStore]:
    async def no_guard(*_: object) -> None:
        return None

    postgres._guard = no_guard  # type: ignore[assignment]  # noqa: SLF001
    return PostgresStore


def plant_guard() -> type[PostgresStore]:
    plant_no_guard()
    return FrozenBeforeWriting


BUGS: dict[str, Callable[[], type[PostgresStore]]] = {
    "version": plant_version,
    "dedup": lambda: WithoutDeduplication,
    "guard": plant_guard,
    "no-guard": plant_no_guard,
    "redecide": lambda: WithoutRedeciding,
}
OF_THE_OTHERS = {"guard": "no-guard"}
"""What the second replica gets where it differs: one that freezes needs one that goes on in its place."""


def main(bug: str) -> None:
    setattr(cli, PostgresStore.__name__, BUGS[bug]())
    found = settings.load()
    logs.configure(found.log)
    asyncio.run(cli.consume(found))


if __name__ == "__main__":
    main(sys.argv[1])
