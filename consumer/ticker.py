"""The reference timer producer: a tick for every conversation whose alarm is due. Several instances are safe.

An alarm (`wake_at`) is armed lazily: renewals leave it alone, so it may ring before the deadline and is set anew then.
One that rings in time is pushed back *before* its tick is emitted, further the longer the deadline has passed: a tick
lost to a crash or an outage comes again, and an outage of minutes does not multiply ticks.
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
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.settings import TickerSettings

log = structlog.get_logger(__name__)
SOURCE = "ticker"


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm that rang. `deadline` passed before `now`, or the alarm was only set anew."""

    conversation_id: str
    deadline: datetime
    now: datetime

    @property
    def is_due(self) -> bool:
        return self.deadline < self.now


class Alarms(Protocol):
    """Both methods raise `UnavailableError`."""

    async def ring(self, limit: int) -> Sequence[Alarm]:
        """Takes at most `limit` alarms that ring, sets or pushes them back, and commits."""

    async def overdue(self) -> int:
        """How many deadlines passed a minute ago or longer and still have no effect."""


Emit = Callable[[bytes, bytes], Awaitable[None]]
"""Publishes a (key, value) and waits for its acknowledgement. Raises `UnavailableError`."""


class Ticker:
    """Rings until stopped."""

    def __init__(self, alarms: Alarms, emit: Emit, settings: TickerSettings, metrics: Metrics, health: Health) -> None:
        self._alarms = alarms
        self._emit = emit
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._stopping = asyncio.Event()
        self._emitting: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Ends `run` after the ticks in flight. Stopped twice is fine."""
        self._health.draining = True
        self._stopping.set()

    async def run(self) -> None:
        while not self._stopping.is_set():
            self._health.polled_at = time.monotonic()
            if await self._round() < self._settings.batch:
                await self._wait(self._settings.interval_seconds)
        if self._emitting:
            await asyncio.wait(self._emitting, timeout=self._settings.drain_seconds)

    async def _round(self) -> int:
        """One batch of alarms; how many rang. The ticks are on their way when it returns, no lock is held for them."""
        try:
            rang = await self._alarms.ring(self._settings.batch)
            self._metrics.expiry_overdue.set(await self._alarms.overdue())
        except UnavailableError as error:
            log.warning("outage: alarms cannot be read", error=str(error))
            return 0
        for alarm in rang:
            if alarm.is_due:
                self._start(alarm)
            else:
                self._metrics.ticks.labels("rearmed").inc()
        await self._room()
        return len(rang)

    def _start(self, alarm: Alarm) -> None:
        task = asyncio.create_task(self._tick(alarm))
        self._emitting.add(task)
        task.add_done_callback(self._emitting.discard)

    async def _tick(self, alarm: Alarm) -> None:
        event_id = f"{alarm.conversation_id}@{alarm.now.isoformat()}"[-200:]
        tick = Tick(conversation_id=alarm.conversation_id, source=SOURCE, event_id=event_id, at=alarm.now)
        try:
            await self._emit(*encoded(tick))
        except UnavailableError as error:
            self._metrics.ticks.labels("failed").inc()
            log.warning("tick not published; its alarm rings again", error=str(error))
        else:
            self._metrics.ticks.labels("emitted").inc()
            self._metrics.tick_delay.observe((alarm.now - alarm.deadline).total_seconds())

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
