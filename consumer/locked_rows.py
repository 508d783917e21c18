"""Rows that somebody else holds for long: the log, the metrics and /status name who does."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from consumer.lifecycle.model import Event
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.records import Record
from consumer.service.batch import Batch
from consumer.service.ports import LockHolder

log = structlog.get_logger(__name__)
LOCKED_SECONDS = 5.0
"""How long somebody may hold a row before the log names them."""
MOST_NAMED = 5
"""Of the rows of a batch: somebody may hold all of them, and asking for one takes half a second."""


class LockedRows:
    """Those that a partition waits for. `lock_holder` says who holds the row of a conversation."""

    def __init__(
        self,
        partition: str,
        lock_holder: Callable[[str], Awaitable[LockHolder | None]],
        metrics: Metrics,
        health: Health,
    ) -> None:
        self._partition = partition
        self._lock_holder = lock_holder
        self._metrics = metrics
        self._health = health
        self._holders: dict[str, LockHolder | None] = {}
        self._count = 0

    async def report(self, batch: Batch, good: Sequence[tuple[Record, Event]]) -> None:
        """Names who holds a row for long, once for each conversation and batch; of many, a few.

        Raises `UnavailableError`.
        """
        locked = batch.locked_longer_than(LOCKED_SECONDS)
        holders = {
            conversation_id: holder for conversation_id, holder in self._holders.items() if conversation_id in locked
        }
        unnamed = [conversation_id for conversation_id in locked if conversation_id not in holders]
        for conversation_id in unnamed[: MOST_NAMED - len(holders)]:
            holders[conversation_id] = holder = await self._lock_holder(conversation_id)
            record, event = next(pair for pair in good if pair[1].conversation_id == conversation_id)
            log.warning(
                "a row is held by another transaction: its partition waits",
                held_by=str(holder) if holder else "nobody any more",
                **record.identity(event.event_id),
            )
        self._note(len(locked), holders)

    def clear(self) -> None:
        """The partition waits for none any more."""
        self._note(0, {})

    def _note(self, count: int, holders: dict[str, LockHolder | None]) -> None:
        self._metrics.blocked_conversations.inc(count - self._count)
        self._count, self._holders = count, holders
        if holder := next(filter(None, holders.values()), None):
            self._health.blocked[self._partition] = f"waits for a row that {holder} holds"
        else:
            self._health.blocked.pop(self._partition, None)
