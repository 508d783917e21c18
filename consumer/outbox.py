"""The outbox relay: publishes committed transitions and deletes them after the acknowledgement. Several are safe.

One relay at a time has the outbox, for a batch; the others wait for their turn. So transitions of a conversation are
published in the order of their versions, and a relay that dies holds nobody up: its turn ends with its transaction.

Each batch starts at the oldest row that is there. A cursor would pass over a transaction that commits late with smaller
ids: the order of a sequence is not the order of commits.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from hashlib import blake2b
from random import Random
from typing import NamedTuple, Protocol

import structlog
from msgspec import json

from consumer.errors import UnavailableError
from consumer.observability.counting import count_seldom
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.retry import Backoff, retried
from consumer.settings import OutboxSettings

log = structlog.get_logger(__name__)
SOURCE = "conversation-consumer"
"""`source` of transitions."""
TYPE = "conversation.transition.v1"
BACKLOG_SECONDS = 5.0
"""How often the backlog is counted, at most."""
MAX_COUNTED = 1_000_000
"""Where more than that wait, so many are counted: counting must not take longer than a statement may."""


class OutboxRow(NamedTuple):
    """A transition in the outbox. The fields are the columns, in their order."""

    id: int
    conversation_id: str
    session: int
    version: int
    from_status: str | None
    to_status: str
    actor: str
    reason: str | None
    occurred_at: datetime
    recorded_at: datetime


class Backlog(NamedTuple):
    """What waits in the outbox: rows, `MAX_COUNTED` at most, and for how long the oldest has waited, in seconds."""

    rows: int
    oldest_seconds: float


class OutboxBatch(Protocol):
    """A relay's turn: a transaction that has the outbox."""

    rows: Sequence[OutboxRow]

    async def delete(self) -> None:
        """Deletes the rows of this batch, and no others; it takes effect with the commit."""


class Outbox(Protocol):
    """The outbox in the database. All methods raise `UnavailableError`."""

    def turn(self, limit: int, seconds: float) -> AbstractAsyncContextManager[OutboxBatch | None]:
        """A turn with the oldest rows, at most `limit`; null while another relay has its turn. Commits at the end.

        The database ends a turn in which nothing happens for so many seconds, and gives it to another relay.
        """

    async def backlog(self) -> Backlog: ...


Publish = Callable[[Sequence[tuple[bytes, bytes]]], Awaitable[None]]
"""Publishes (key, value) pairs, those of a key in order; waits for the acknowledgements. Raises `UnavailableError`."""


class OutboxRelay:
    """Publishes what is in the outbox until stopped."""

    def __init__(
        self,
        outbox: Outbox,
        publish: Publish,
        *,
        settings: OutboxSettings,
        metrics: Metrics,
        health: Health,
        rng: Random | None = None,
    ) -> None:
        self._outbox = outbox
        self._publish = publish
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._backoff = Backoff(0.1, settings.outage_backoff_max_seconds, rng or Random())
        self._stopping = asyncio.Event()
        self._limit = settings.batch

    def stop(self) -> None:
        """Ends `run` after the batch in flight. Stopped twice is fine."""
        self._health.draining = True
        self._stopping.set()

    async def run(self) -> None:
        # Beside the publishing: it goes on whether anything is published or not.
        counting = asyncio.create_task(count_seldom(self._count, BACKLOG_SECONDS, self._stopping))
        try:
            while not self._stopping.is_set():
                limit = self._limit
                if await self._through_outages() < limit:
                    await self._wait(self._settings.interval_seconds)
        finally:
            self._stopping.set()
            await counting

    async def _through_outages(self) -> int:
        """One turn, however often it fails; how many transitions were published."""
        published = await retried(
            lambda _: self._turn_unless_stopped(),
            UnavailableError,
            self._backoff,
            self._wait,
            before_sleep=self._note_outage,
        )
        self._limit = min(2 * self._limit, self._settings.batch)
        if self._health.outages.pop("outbox", None) and not self._stopping.is_set():
            log.info("outage over")
        return published

    async def _turn_unless_stopped(self) -> int:
        self._health.polled_at = time.monotonic()
        return 0 if self._stopping.is_set() else await self._turn()

    async def _turn(self) -> int:
        clock, seconds = asyncio.get_running_loop().time, self._settings.turn_seconds
        started = clock()
        async with self._outbox.turn(self._limit, seconds) as batch:
            if batch is None or not batch.rows:
                return 0
            records = [encoded(row) for row in batch.rows]
            if clock() - started > seconds:
                raise UnavailableError("this relay stood still for longer than a turn")
            await self._publish(records)
            await batch.delete()
        self._metrics.relayed(len(batch.rows))
        log.debug("transitions published", rows=len(batch.rows), seconds=round(clock() - started, 6))
        return len(batch.rows)

    async def _count(self) -> None:
        backlog = await self._outbox.backlog()
        self._metrics.outbox_rows.set(backlog.rows)
        self._metrics.outbox_oldest.set(backlog.oldest_seconds)

    def _note_outage(self, error: BaseException, _: float) -> None:
        """What takes too long to publish may be published in smaller batches."""
        self._limit = max(1, self._limit // 2)
        if "outbox" not in self._health.outages:
            log.warning("outage: transitions are not published", error=str(error))
        self._health.outages["outbox"] = str(error)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def encoded(row: OutboxRow) -> tuple[bytes, bytes]:
    """The Kafka record of a transition: (key, value)."""
    event = {
        "specversion": "1.0",
        "id": event_id(row),
        "source": SOURCE,
        "subject": row.conversation_id,
        "time": row.recorded_at,
        "type": TYPE,
        "data": {
            "session": row.session,
            "version": row.version,
            "from": row.from_status,
            "to": row.to_status,
            "actor": row.actor,
            "reason": row.reason,
            "occurred_at": row.occurred_at,
        },
    }
    return row.conversation_id.encode(), json.encode(event)


def event_id(row: OutboxRow) -> str:
    """The same whenever a row is published again; another one if the database was restored and decided anew."""
    return f"{row.version}-{blake2b(json.encode(row[1:]), digest_size=16).hexdigest()}"
