"""One partition's life: batches, outage pause, drain, offset guard. Knows offsets, neither SQL nor aiokafka."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Protocol

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from consumer.decoding import decode_all
from consumer.errors import DrainingError, PartitionStoppedError, StaleOwnerError, TooSlowError, UnavailableError
from consumer.lifecycle.model import Event
from consumer.observability.health import Health
from consumer.observability.metrics import INVALID, Metrics
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.records import DeadLetter, Record
from consumer.service.batch import Batch
from consumer.service.cache import Memory
from consumer.service.service import ConversationService
from consumer.settings import WorkerSettings
from schemas import Reason

log = structlog.get_logger(__name__)
SLOW_SECONDS = 0.5
IDLE_SECONDS = 5.0
"""How often a partition without news looks whether its offset is still as it left it: a rewind brings no records."""
RECHECK_SECONDS = 10.0
"""How often a stopped partition looks whether somebody has mended its offset."""


class PartitionLog(Protocol):
    """One assigned partition of the log. Methods that ask the brokers raise `UnavailableError`."""

    partition: Partition

    async def cluster_id(self) -> str: ...

    async def bounds(self) -> tuple[int, int]:
        """The first offset there is, and the one after the last."""

    def seek(self, offset: int) -> None:
        """Forgets what was fetched and goes on at `offset`."""

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        """The next records, at most `limit`; none if none come in time, or once the partition is given up.

        Raises `PartitionStoppedError` if the log no longer has the next one.
        """

    def is_given_up(self) -> bool:
        """Whether the partition was revoked or the process is stopping."""

    def applied(self, next_offset: int) -> None:
        """Everything before `next_offset` is in the database: may be committed to Kafka."""

    def pause(self) -> None:
        """Fetches nothing until the next `take`."""

    async def given_up_within(self, seconds: float) -> bool:
        """Waits that long at most; whether the partition was revoked or the process is stopping."""


class DeadLetters(Protocol):
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when the topic has acknowledged all of them; raises `UnavailableError` otherwise."""


class Offsets(Protocol):
    """Where partitions go on, in the database."""

    async def stored_offset(self, partition: Partition) -> StoredOffset | None: ...

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None: ...


class PartitionWorker:
    """Strictly sequential: the next batch starts when the last one is in the database."""

    def __init__(
        self,
        source: PartitionLog,
        service: ConversationService,
        offsets: Offsets,
        dead_letters: DeadLetters,
        *,
        settings: WorkerSettings,
        metrics: Metrics,
        health: Health,
        rng: Random | None = None,
    ) -> None:
        self._source = source
        self._service = service
        self._offsets = offsets
        self._dead_letters = dead_letters
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._rng = rng or Random()
        self._ceiling = wait_exponential(multiplier=0.1, max=settings.outage_backoff_max_seconds)
        self._next_offset = self._mark = 0
        self._memory = Memory(settings.max_remembered)
        self._bite = settings.max_batch
        self._name = f"{source.partition.topic}[{source.partition.number}]"
        self._slow = f"{self._name}, writing"

    async def run(self) -> None:
        """Applies the partition until it is given up. An unexpected error is a bug and ends the process."""
        try:
            await self._start()
            while await self._step():
                pass
        except DrainingError:
            log.info("gave the partition up between transactions", partition=self._name)
        finally:
            for name in (self._name, self._slow):
                self._health.outages.pop(name, None)
            self._health.stopped.pop(self._name, None)

    async def _start(self) -> None:
        """Seeks to the stored offset; where it does not fit the log, waits until somebody has mended it."""
        mended = False
        while True:
            try:
                await self._patiently(self._seek_to_stored_offset)
            except PartitionStoppedError as error:
                await self._stop_for_a_while(error)
                mended = True
            else:
                if mended:
                    self._health.stopped.pop(self._name, None)
                return

    async def _step(self) -> bool:
        """One batch; false once the partition is given up."""
        try:
            records = await self._source.take(self._bite, IDLE_SECONDS)
            if records:
                self._health.stopped.pop(self._name, None)
                await self._process(records)
            elif not self._source.is_given_up():
                await self._patiently(self._look_for_a_rewind)
        except PartitionStoppedError as error:
            stopped_at = self._next_offset
            await self._stop_for_a_while(error)
            await self._start()
            if self._next_offset != stopped_at:
                self._health.stopped.pop(self._name, None)
        return not self._source.is_given_up()

    async def _look_for_a_rewind(self) -> None:
        stored = await self._offsets.stored_offset(self._source.partition)
        if stored is None or (stored.next_offset, stored.mark) != (self._next_offset, self._mark):
            log.warning("the stored offset is not as it was left", partition=self._name)
            await self._seek_to_stored_offset()

    async def _stop_for_a_while(self, error: PartitionStoppedError) -> None:
        if self._health.stopped.get(self._name) != str(error):
            log.error("partition stopped", partition=self._name, error=str(error))
        self._health.stopped[self._name] = str(error)
        await self._sleep(RECHECK_SECONDS)

    async def _seek_to_stored_offset(self) -> None:
        partition, cluster_id = self._source.partition, await self._source.cluster_id()
        first, end = await self._source.bounds()
        stored = await self._offsets.stored_offset(partition)
        if stored is None:
            await self._offsets.create_offset(partition, StoredOffset(cluster_id, first))
            stored = await self._offsets.stored_offset(partition) or StoredOffset(cluster_id, first)
        mend = f"run `conversation-consumer offsets set {partition.topic} {partition.number} OFFSET`"
        if stored.cluster_id != cluster_id:
            raise PartitionStoppedError(
                f"the stored offset counts in cluster {stored.cluster_id}, not {cluster_id}: {mend}"
            )
        if not first <= stored.next_offset <= end:
            raise PartitionStoppedError(f"stored offset {stored.next_offset} is outside the log {first}..{end}: {mend}")
        self._next_offset, self._mark = stored.next_offset, stored.mark
        self._memory.forget()
        self._source.seek(stored.next_offset)
        log.info("partition started", partition=self._name, next_offset=stored.next_offset)

    async def _process(self, records: Sequence[Record]) -> None:
        """Decode, dead letters, effects and offset, advisory commit: in this order, so that nothing is skipped."""
        self._metrics.batch_events.observe(len(records))
        good, bad = decode_all(records, self._settings.max_record_bytes)
        await self._bury(bad)
        progress = Progress(self._source.partition, self._next_offset, records[-1].offset + 1, self._mark)
        try:
            with self._metrics.inflight(len(good)):
                await self._apply(good, progress)
        except StaleOwnerError as error:
            log.warning("another owner or a rewind moved the offset", partition=self._name, error=str(error))
            await self._start()
        except TooSlowError as error:
            await self._take_smaller_bites(len(records), error)
        else:
            self._health.outages.pop(self._slow, None)
            self._bite = min(2 * self._bite, self._settings.max_batch)
            self._next_offset = progress.end
            self._source.applied(progress.end)

    async def _take_smaller_bites(self, records: int, error: TooSlowError) -> None:
        """A database that cannot write so much in time may be able to write half of it."""
        self._bite = max(1, records // 2)
        log.warning(
            "the database is too slow: smaller batches", partition=self._name, records=self._bite, error=str(error)
        )
        self._health.outages[self._slow] = str(error)
        await self._sleep(self._rng.uniform(0, SLOW_SECONDS))
        await self._start()

    async def _apply(self, good: Sequence[tuple[Record, Event]], progress: Progress) -> None:
        batch = Batch([event for _, event in good], progress, self._source.partition.topic, self._memory)
        await self._patiently(lambda: self._service.consume(batch, self._sleep), but=TooSlowError)
        if batch.refused:
            why = "PostgreSQL refused a value"
            await self._bury([DeadLetter(good[i][0], Reason.REFUSED, why) for i in batch.refused])
            batch.buried = True
            await self._patiently(lambda: self._service.consume(batch, self._sleep))
        if batch.progress is not None:
            self._mark = batch.progress.mark

    async def _bury(self, letters: Sequence[DeadLetter]) -> None:
        """The dead letters are acknowledged before anything else of their batch happens."""
        if not letters:
            return
        await self._patiently(lambda: self._dead_letters.send(letters))
        for letter in letters:
            self._metrics.dead_lettered(letter.record.topic, INVALID, letter.reason)
            self._health.last_dead_letters.appendleft(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {letter.reason}")
            log.warning(
                "dead letter",
                partition=self._name,
                offset=letter.record.offset,
                reason=letter.reason.value,
                error=letter.error,
            )

    async def _patiently(self, action: Callable[[], Awaitable[None]], but: type[Exception] | tuple[()] = ()) -> None:
        """Through outages, however long: the partition waits, not ready, while heartbeats go on."""
        try:
            await action()
        except UnavailableError as error:
            await self._sit_out(error, action, but)
        if self._health.outages.pop(self._name, None):
            log.info("outage over", partition=self._name)

    async def _sit_out(
        self, first: UnavailableError, action: Callable[[], Awaitable[None]], but: type[Exception] | tuple[()]
    ) -> None:
        """Tries again; `first` is what the first attempt came to, made without the machinery that this takes."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(lambda e: isinstance(e, UnavailableError) and not isinstance(e, but)),
            reraise=True,
            wait=lambda state: self._rng.uniform(0, self._ceiling(state)),
            sleep=self._sleep,
            before_sleep=self._note_outage,
        ):
            with attempt:
                if attempt.retry_state.attempt_number == 1:
                    raise first
                await action()

    def _note_outage(self, state: RetryCallState) -> None:
        error = state.outcome and state.outcome.exception()
        if self._name not in self._health.outages:
            log.warning("outage: partition paused", partition=self._name, error=str(error))
        self._health.outages[self._name] = str(error)
        self._source.pause()

    async def _sleep(self, seconds: float) -> None:
        if await self._source.given_up_within(seconds):
            raise DrainingError(self._name)
