"""The reference timer producer: a tick for every conversation whose timer is due. Several instances are safe.

A timer (`wake_at`) is set lazily: renewals leave it alone, so it may be due before the deadline and is then set anew.
A timer whose deadline has passed is pushed back *before* its tick is emitted, further the longer ago the deadline was.
So a tick lost to a crash or an outage comes again, and an outage of minutes does not multiply ticks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import structlog

from consumer.decoding import encoded
from consumer.errors import UnavailableError
from consumer.lifecycle.model import Tick
from consumer.observability.counting import count_seldom
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.settings import TickerSettings

log = structlog.get_logger(__name__)
SOURCE = "ticker"
OUTAGE_SECONDS = 10.0
"""The longest pause between two tries while the database is away."""
OVERDUE_SECONDS = 5.0
"""How often overdue deadlines are counted, at most: the time it takes grows with the number of conversations."""


@dataclass(frozen=True, slots=True)
class DueTimer:
    """A timer that was due. Its `deadline` passed before `now`, or it was only set anew."""

    conversation_id: str
    deadline: datetime
    now: datetime

    @property
    def deadline_has_passed(self) -> bool:
        return self.deadline < self.now


class Timers(Protocol):
    """Both methods raise `UnavailableError`."""

    async def take_due_timers(self, limit: int) -> Sequence[DueTimer]:
        """Takes at most `limit` timers that are due, sets them anew or pushes them back, and commits."""

    async def overdue(self) -> int:
        """How many deadlines passed a minute ago or longer and still have no effect."""


Emit = Callable[[bytes, bytes], Awaitable[None]]
"""Publishes a (key, value) and waits for its acknowledgement. Raises `UnavailableError`."""


class Ticker:
    """Takes due timers and emits ticks until stopped."""

    def __init__(self, timers: Timers, emit: Emit, settings: TickerSettings, metrics: Metrics, health: Health) -> None:
        self._timers = timers
        self._emit = emit
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._pause_seconds = settings.interval_seconds
        self._stopping = asyncio.Event()
        self._emitting: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Ends `run` after the ticks in flight. Stopped twice is fine."""
        self._health.draining = True
        self._stopping.set()

    async def run(self) -> None:
        counting = asyncio.create_task(count_seldom(self._count, OVERDUE_SECONDS, self._stopping))
        try:
            while not self._stopping.is_set():
                self._health.polled_at = time.monotonic()
                if await self._round() < self._settings.batch:
                    await self._wait(self._pause_seconds)
            if self._emitting:
                await asyncio.wait(self._emitting, timeout=self._settings.drain_seconds)
        finally:
            self._stopping.set()
            await counting

    async def _count(self) -> None:
        self._metrics.expiry_overdue.set(await self._timers.overdue())

    async def _round(self) -> int:
        """One batch of timers; how many were due. Their ticks are on the way when it returns, and no lock is held."""
        try:
            due = await self._timers.take_due_timers(self._settings.batch)
        except UnavailableError as error:
            if "timers" not in self._health.outages:
                log.warning("outage: timers cannot be read", error=str(error))
            self._health.outages["timers"] = str(error)
            self._pause_seconds = min(2 * self._pause_seconds, OUTAGE_SECONDS)
            return 0
        if self._health.outages.pop("timers", None):
            log.info("outage over")
        self._pause_seconds = self._settings.interval_seconds
        for timer in due:
            if timer.deadline_has_passed:
                self._start(timer)
            else:
                self._metrics.ticks.labels("rearmed").inc()
        await self._room()
        return len(due)

    def _start(self, timer: DueTimer) -> None:
        task = asyncio.create_task(self._tick(timer))
        self._emitting.add(task)
        task.add_done_callback(self._emitting.discard)

    async def _tick(self, timer: DueTimer) -> None:
        event_id = f"{timer.conversation_id}@{timer.now.isoformat()}"[-200:]
        tick = Tick(conversation_id=timer.conversation_id, source=SOURCE, event_id=event_id, at=timer.now)
        try:
            await self._emit(*encoded(tick))
        except UnavailableError as error:
            self._metrics.ticks.labels("failed").inc()
            log.warning("tick not published; its timer comes again", error=str(error))
        else:
            self._metrics.ticks.labels("emitted").inc()
            self._metrics.tick_delay.observe((timer.now - timer.deadline).total_seconds())

    async def _room(self) -> None:
        """Waits while too many ticks are unacknowledged, but no longer than a round: a stuck partition starves none."""
        if len(self._emitting) >= self._settings.max_unacknowledged:
            await asyncio.wait(
                self._emitting, timeout=self._settings.interval_seconds, return_when=asyncio.FIRST_COMPLETED
            )

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
