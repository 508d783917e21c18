"""The store with places to interfere at, for replicas that fail or have a bug: production code has no switch for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from consumer.offsets import Progress
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.service.ports import NO_CONVERSATIONS, Conversations, EventsById, Locking


class HookedStore(PostgresStore):
    """Each attempt passes these places in their order. By default nothing happens there."""

    @asynccontextmanager
    async def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations = NO_CONVERSATIONS
    ) -> AsyncIterator[PostgresAttempt]:
        await self.before(events, progress, locking, cached)
        async with super().attempt(events, progress, locking, cached) as attempt:
            self.began(attempt, events)
            yield attempt
            self.committing()
        self.committed()

    async def before(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations
    ) -> None:
        """There is no transaction yet."""

    def began(self, attempt: PostgresAttempt, events: EventsById) -> None:
        """All is read, nothing is written."""

    def committing(self) -> None:
        """All is written. Nothing is committed, unless the attempt was one of few events (`few`)."""

    def committed(self) -> None:
        """In the database, and not yet known to anybody else."""
