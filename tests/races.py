"""Two real writers that decide on the same state: the one comes first, the other finds that it lost."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from consumer.lifecycle.model import Event, Outcome
from consumer.observability.metrics import Metrics, samples, total
from consumer.offsets import Progress
from consumer.service.ports import Attempt, Conversations, EventsById, Locking, Store
from consumer.service.service import ConversationService
from tests.conftest import opened


class Race:
    """Where two writers meet after they have read, and who of them writes first."""

    def __init__(self) -> None:
        self.both_have_read = asyncio.Barrier(2)
        self.first_has_written = asyncio.Event()


class RacingStore:
    """A store whose first round meets the other writer's; later rounds go straight through."""

    def __init__(self, store: Store, race: Race, *, writes_first: bool) -> None:
        self._store = store
        self._race = race
        self._writes_first = writes_first
        self._rounds = 0

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations
    ) -> AsyncIterator[Attempt]:
        async with self._store.attempt(events, progress, locking, cached) as attempt:
            self._rounds += 1
            if self._rounds == 1:
                await self._race.both_have_read.wait()
            if not self._writes_first:
                await self._race.first_has_written.wait()
            yield attempt
        self._race.first_has_written.set()


async def race(
    url: str, first: Sequence[Event], second: Sequence[Event]
) -> tuple[list[Outcome], list[Outcome], Metrics]:
    """Both writers read; `first` writes, then `second` loses, reads again and decides anew. The metrics are of both."""
    metrics, meeting = Metrics(), Race()
    async with opened(url) as one, opened(url) as other:
        ahead = ConversationService(RacingStore(one, meeting, writes_first=True), metrics=metrics)
        behind = ConversationService(RacingStore(other, meeting, writes_first=False), metrics=metrics)
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            won, lost = group.create_task(ahead.apply(first)), group.create_task(behind.apply(second))
    return won.result(), lost.result(), metrics


def counted(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of a counter, summed over the labels not named."""
    return total(samples(metrics.registry), name, **labels)
