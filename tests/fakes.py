"""Stands-in that pass the suites of the real parts."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

from consumer.conversation import Conversation, HistoryRow, Session, Tick
from consumer.errors import StaleOwnerError
from consumer.service import Decided, EventsById, Lost, Partition, Progress, Snapshot, StoredOffset


class MemoryStore:
    """`service.Store` and `worker.Offsets` in a dictionary, with the same guard, versions and row locks."""

    def __init__(self, now: datetime | None = None) -> None:
        self.now = now
        self.conversations: dict[str, Conversation] = {}
        self.rows: dict[str, list[tuple[HistoryRow, datetime]]] = {}
        self.offsets: dict[Partition, StoredOffset] = {}
        self.locks: Counter[str] = Counter()
        self.waiting = False
        self._released = asyncio.Condition()

    async def load(self, events: EventsById) -> Snapshot:
        found = {key: self.conversations[key] for key in events if key in self.conversations}
        known = {
            key: frozenset(
                (row.source, row.event_id)
                for row, _ in self.rows[key]
                if any(
                    not isinstance(e, Tick) and (e.source, e.event_id) == (row.source, row.event_id)
                    for e in events[key]
                )
            )
            for key in found
        }
        return Snapshot(self.now or datetime.now(UTC), found, known)

    async def save(self, decided: Decided, progress: Progress | None) -> Lost:
        return self.write(decided, progress, {key for key, holders in self.locks.items() if holders})

    def write(self, decided: Decided, progress: Progress | None, held: Collection[str]) -> Lost:
        """Saves everything but what others hold."""
        self._guard(progress)
        writing = {change.after.id: change for change in decided.changes if change.rows}
        lost = dict.fromkeys(writing.keys() & held, "lock")
        for key, change in writing.items():
            stands = self.conversations.get(key, Conversation(key)).version == change.before.version
            if key not in lost and not stands:
                lost[key] = "version"
            elif key not in lost:
                self.conversations[key] = change.after
                self.rows.setdefault(key, []).extend((row, decided.now) for row in change.rows)
        if progress is not None and not lost:
            stored = self.offsets[progress.partition]
            self.offsets[progress.partition] = replace(stored, next_offset=progress.end)
        return lost

    @asynccontextmanager
    async def locked(self, events: EventsById, progress: Progress | None) -> AsyncIterator["MemoryLockedRows"]:
        self._guard(progress)
        async with self.lock(*events):
            yield MemoryLockedRows(self, await self.load(events), progress)

    @asynccontextmanager
    async def lock(self, *keys: str) -> AsyncIterator[None]:
        """Row locks, taken in order."""
        async with self._released:
            self.waiting = any(self.locks[key] for key in keys)
            await self._released.wait_for(lambda: not any(self.locks[key] for key in keys))
            self.locks.update(keys)
        try:
            yield
        finally:
            async with self._released:
                self.locks.subtract(keys)
                self._released.notify_all()

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        return self.offsets.get(partition)

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        self.offsets.setdefault(partition, offset)

    async def conversation(self, conversation_id: str) -> tuple[list[Session], int]:
        found = self.conversations.get(conversation_id, Conversation(conversation_id))
        return list(found.sessions), found.version

    async def history(self, conversation_id: str) -> list[tuple[HistoryRow, datetime]]:
        return self.rows.get(conversation_id, [])

    def _guard(self, progress: Progress | None) -> None:
        if progress is None:
            return
        stored = self.offsets.get(progress.partition)
        if stored is None or stored.next_offset != progress.start:
            raise StaleOwnerError(f"not at {progress.start}")


class MemoryLockedRows:
    def __init__(self, store: MemoryStore, snapshot: Snapshot, progress: Progress | None) -> None:
        self.snapshot = snapshot
        self._store = store
        self._progress = progress

    async def save(self, decided: Decided) -> Lost:
        return self._store.write(decided, self._progress, held=())
