"""The reference timer producer: a tick for every conversation whose timer is due. Several instances are safe.

A timer (`wake_at`) is set lazily: renewals leave it alone, so it may be due before the deadline and is then set anew.
A timer whose deadline has passed is pushed back *before* its tick is emitted, further the longer ago the deadline was.
So a tick lost to a crash or an outage comes again, and an outage of minutes does not multiply ticks.

For the same reason no tick has to wait for a partition whose leader is away: what is too much for it is given up.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol

import structlog
from msgspec import json

from consumer.decoding import as_record
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
"""How often overdue deadlines are counted, at most."""
SWEEP_SECONDS = 5.0
"""How often due timers are looked for from the start: those that were locked, or were set to a time in the past."""


class DueTimer(NamedTuple):
    """A timer that was due at `wake_at`. Its `deadline` passed before `now`, or it was only set anew."""

    conversation_id: str
    wake_at: datetime
    deadline: datetime
    now: datetime

    @property
    def deadline_has_passed(self) -> bool:
        return self.deadline < self.now


class Timers(Protocol):
    """Both methods raise `UnavailableError`."""

    async def take_due_timers(self, limit: int, since: datetime | None = None) -> Sequence[DueTimer]:
        """Takes at most `limit` timers that are due, the oldest ones, sets them anew or pushes them back, and commits.

        With `since`, only those due from that time on.
        """

    async def overdue(self) -> int:
        """How many deadlines passed a minute ago or longer and still have no effect."""


class TickTopic(Protocol):
    """The topic that ticks are published to."""

    async def partitions(self) -> int:
        """How many it has. Raises `UnavailableError`."""

    def partition_of(self, key: bytes, partitions: int) -> int:
        """The partition of a key, of so many."""

    async def publish(self, partition: int, ticks: Sequence[tuple[bytes, bytes]]) -> None:
        """Publishes (key, value) pairs to a partition and waits for their acknowledgement, for a limited time.

        Raises `UnavailableError`: then some may be published.
        """


class Lane:
    """The ticks on their way to a partition: one batch is published after the other."""

    def __init__(
        self, partition: int, publish: Callable[[Sequence[DueTimer]], Awaitable[None]], patience_seconds: float
    ) -> None:
        self.partition = partition
        self.unacknowledged = 0
        self.publishing: set[asyncio.Task[None]] = set()
        self.failure: BaseException | None = None
        """What ended a batch and should not have: a bug."""
        self._publish = publish
        self._patience_seconds = patience_seconds
        self._turn = asyncio.Lock()
        self._is_stuck = False

    async def put(self, timers: Sequence[DueTimer], limit: int) -> Sequence[DueTimer]:
        """Has ticks published in the background, at most `limit` at a time; those for which there was no room.

        Waits for room, but only while some is made.
        """
        while timers:
            if (free := limit - self.unacknowledged) > 0:
                self._start(timers[:free])
                timers = timers[free:]
            elif not await self._makes_room():
                break
        return timers

    def _start(self, timers: Sequence[DueTimer]) -> None:
        self.unacknowledged += len(timers)
        task = asyncio.create_task(self._publish_in_turn(timers))
        self.publishing.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self.publishing.discard(task)
        self.failure = self.failure or (None if task.cancelled() else task.exception())

    async def _publish_in_turn(self, timers: Sequence[DueTimer]) -> None:
        try:
            async with self._turn:
                await self._publish(timers)
        finally:
            self.unacknowledged -= len(timers)
            self._is_stuck = False

    async def _makes_room(self) -> bool:
        """Whether a batch ends soon. Who has waited in vain is not waited for again, until one does."""
        if not self._is_stuck:
            ended, _ = await asyncio.wait(
                self.publishing, timeout=self._patience_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            self._is_stuck = not ended
            if self._is_stuck:
                log.warning("too many ticks are unacknowledged; further ones are given up", partition=self.partition)
        return not self._is_stuck


class Ticker:
    """Takes due timers and emits ticks until stopped."""

    def __init__(
        self, timers: Timers, topic: TickTopic, settings: TickerSettings, metrics: Metrics, health: Health
    ) -> None:
        self._timers = timers
        self._topic = topic
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._pause_seconds = settings.interval_seconds
        self._stopping = asyncio.Event()
        self._lanes: list[Lane] = []
        self._since: datetime | None = None
        self._swept_at = -math.inf

    def stop(self) -> None:
        """Ends `run` after the ticks in flight. Stopped twice is fine."""
        self._health.draining = True
        self._stopping.set()

    async def run(self) -> None:
        counting = asyncio.create_task(count_seldom(self._count, OVERDUE_SECONDS, self._stopping))
        try:
            while not self._stopping.is_set():
                self._health.polled_at = time.monotonic()
                if not await self._round():
                    await self._wait(self._pause_seconds)
            if publishing := self._publishing():
                await asyncio.wait(publishing, timeout=self._settings.drain_seconds)
        finally:
            self._stopping.set()
            await counting

    async def _count(self) -> None:
        self._metrics.expiry_overdue.set(await self._timers.overdue())

    async def _round(self) -> bool:
        """A batch of timers; whether more may be due. Its ticks are on their way by then, and no lock is held."""
        for failure in filter(None, [lane.failure for lane in self._lanes]):
            raise failure
        try:
            await self._open_lanes()
            limit = await self._room()
            due = await self._timers.take_due_timers(limit, self._place()) if limit else ()
        except UnavailableError as error:
            self._note_outage(error)
            return False
        if self._health.outages.pop("timers", None):
            log.info("outage over")
        self._pause_seconds = self._settings.interval_seconds
        if due:
            self._since = max(timer.wake_at for timer in due)
            await self._emit(due)
        return len(due) == limit

    async def _open_lanes(self) -> None:
        """One for each partition. A topic that was made anew may have fewer: what is on its way may still end."""
        if (partitions := await self._topic.partitions()) < len(self._lanes):
            self._lanes = []
        for number in range(len(self._lanes), partitions):
            self._lanes.append(Lane(number, partial(self._publish, number), self._settings.interval_seconds))

    @property
    def _share(self) -> int:
        """How many ticks of a partition may be unacknowledged: where one takes none, the others go on."""
        return max(1, self._settings.max_unacknowledged // len(self._lanes))

    def _free(self) -> int:
        return self._share * len(self._lanes) - sum(lane.unacknowledged for lane in self._lanes)

    async def _room(self) -> int:
        """How many timers may be taken. Waits for half of all room at most, and no longer than an interval."""
        wanted = min(self._settings.batch, max(1, self._share * len(self._lanes) // 2))
        clock = asyncio.get_running_loop().time
        until = clock() + self._settings.interval_seconds
        while (free := self._free()) < wanted and (left := until - clock()) > 0:
            await asyncio.wait(self._publishing(), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        return min(self._settings.batch, free)

    def _publishing(self) -> list[asyncio.Task[None]]:
        return [task for lane in self._lanes for task in lane.publishing]

    def _place(self) -> datetime | None:
        """Where the last batch ended: behind it are the entries of those taken. At times the start, for late comers."""
        if (now := asyncio.get_running_loop().time()) - self._swept_at >= SWEEP_SECONDS:
            self._swept_at, self._since = now, None
        return self._since

    def _note_outage(self, error: UnavailableError) -> None:
        if "timers" not in self._health.outages:
            log.warning("outage: timers cannot be taken", error=str(error))
        self._health.outages["timers"] = str(error)
        self._pause_seconds = min(2 * self._pause_seconds, OUTAGE_SECONDS)

    async def _emit(self, due: Sequence[DueTimer]) -> None:
        """Returns once the ticks are on their way, or given up."""
        passed = [timer for timer in due if timer.deadline_has_passed]
        self._metrics.ticks.labels("rearmed").inc(len(due) - len(passed))
        by_partition: defaultdict[int, list[DueTimer]] = defaultdict(list)
        for timer in passed:
            key = timer.conversation_id.encode()
            by_partition[self._topic.partition_of(key, len(self._lanes))].append(timer)
        share = self._share
        putting = (self._lanes[number].put(timers, share) for number, timers in by_partition.items())
        for given_up in await asyncio.gather(*putting):
            self._metrics.ticks.labels("failed").inc(len(given_up))

    async def _publish(self, partition: int, timers: Sequence[DueTimer]) -> None:
        try:
            await self._topic.publish(partition, [encoded(timer) for timer in timers])
        except UnavailableError as error:
            self._metrics.ticks.labels("failed").inc(len(timers))
            log.warning("ticks not published; their timers come again", partition=partition, error=str(error))
        else:
            self._metrics.ticks.labels("emitted").inc(len(timers))
            self._metrics.tick_delay.observe_all([(timer.now - timer.deadline).total_seconds() for timer in timers])

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def encoded(timer: DueTimer) -> tuple[bytes, bytes]:
    """The Kafka record of its tick, (key, value): as `decoding.encoded` makes it, in half the time."""
    event_id = f"{timer.conversation_id}@{timer.now.isoformat()}"[-200:]
    tick = Tick(conversation_id=timer.conversation_id, source=SOURCE, event_id=event_id, at=timer.now)
    return timer.conversation_id.encode(), json.encode(as_record(tick))
