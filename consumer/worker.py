"""One partition's life: batches, outage pause, drain, offset guard. Knows offsets, neither SQL nor aiokafka."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from random import Random
from typing import Protocol

import structlog
from structlog.contextvars import bound_contextvars

from consumer.decoding import decode_all
from consumer.errors import DrainingError, PartitionStoppedError, StaleOwnerError, TooSlowError, UnavailableError
from consumer.lifecycle.model import Event
from consumer.locked_rows import LockedRows
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.observability.tracing import BatchFacts, NoTracing, Tracing
from consumer.offsets import Partition, Progress, StoredOffset
from consumer.records import DeadLetter, Record, known
from consumer.retry import Backoff, retried
from consumer.service.batch import Batch
from consumer.service.cache import ConversationCache
from consumer.service.ports import LockHolder
from consumer.service.service import ConversationService
from consumer.settings import WorkerSettings
from schemas import Reason

log = structlog.get_logger(__name__)
SLOW_SECONDS = 0.5
IDLE_SECONDS = 5.0
"""How often an idle partition compares the stored offset with its own: a rewind of the database brings no records."""
UNACKNOWLEDGED_SECONDS = 15.0
"""How long dead letters may wait for their acknowledgement before the replica says that it is not ready."""
RECHECK_SECONDS = 10.0
"""How often a stopped partition reads its stored offset: an operator may have set it."""


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

    def is_revoked(self) -> bool:
        """Whether the partition was revoked or the process is stopping."""

    def applied(self, next_offset: int) -> None:
        """Everything before `next_offset` is in the database: may be committed to Kafka."""

    def pause(self) -> None:
        """Fetches nothing until the next `take`."""

    async def revoked_within(self, seconds: float) -> bool:
        """Waits that long at most; whether the partition was revoked or the process is stopping."""


class DeadLetters(Protocol):
    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when the topic has acknowledged all of them.

        Raises `UnavailableError`, and `PartitionStoppedError` where one does not fit into the topic.
        """


class WorkerStore(Protocol):
    """What a worker itself asks of the database. All methods raise `UnavailableError`."""

    async def stored_offset(self, partition: Partition) -> StoredOffset | None: ...

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        """Makes the row at the first assignment of a partition; one that is there stays as it is."""

    async def lock_holder(self, conversation_id: str) -> LockHolder | None:
        """Who holds the row of the conversation now; None if nobody does."""


class PartitionWorker:
    """Strictly sequential: the next batch starts when the last one is in the database."""

    def __init__(
        self,
        source: PartitionLog,
        service: ConversationService,
        store: WorkerStore,
        dead_letters: DeadLetters,
        *,
        settings: WorkerSettings,
        metrics: Metrics,
        health: Health,
        tracing: Tracing | None = None,
        rng: Random | None = None,
    ) -> None:
        self._source = source
        self._service = service
        self._store = store
        self._dead_letters = dead_letters
        self._settings = settings
        self._metrics = metrics
        self._health = health
        self._tracing = tracing or NoTracing()
        self._rng = rng or Random()
        self._backoff = Backoff(0.1, settings.outage_backoff_max_seconds, self._rng)
        self._next_offset = self._mark = self._unwritten_end = 0
        self._cache = ConversationCache(settings.max_remembered)
        self._batch_limit = settings.max_batch
        self._unreadable_at: int | None = None
        self._name = f"{source.partition.topic}[{source.partition.number}]"
        self._writing = f"{self._name}, writing"
        self._locked_rows = LockedRows(self._name, store.lock_holder, metrics, health)

    async def run(self) -> None:
        """Applies the partition until it is given up. An unexpected error is a bug and ends the process."""
        place = self._source.partition
        with bound_contextvars(topic=place.topic, partition=place.number):
            try:
                await self._start()
                while not self._source.is_revoked():
                    await self._step()
            except DrainingError:
                log.info("gave the partition up between transactions")
            finally:
                for name in (self._name, self._writing):
                    self._health.outages.pop(name, None)
                self._health.stopped.pop(self._name, None)

    async def _start(self) -> None:
        """Seeks to the stored offset; while it does not fit the log, waits for an operator to set it."""
        while True:
            try:
                return await self._through_outages(self._seek_to_stored_offset)
            except PartitionStoppedError as error:
                await self._stop(error)

    async def _step(self) -> None:
        """One batch, or one look at the stored offset if no record comes."""
        try:
            records = await self._source.take(self._batch_limit, IDLE_SECONDS)
            if records:
                self._health.stopped.pop(self._name, None)
                await self._process(records)
            elif not self._source.is_revoked():
                await self._through_outages(self._check_for_rewind)
        except PartitionStoppedError as error:
            self._unreadable_at = self._next_offset
            await self._stop(error)
            await self._start()

    async def _stop(self, error: PartitionStoppedError) -> None:
        """Stops the partition for a while; the replica is not ready."""
        if self._health.stopped.get(self._name) != str(error):
            log.error("partition stopped", error=str(error))
        self._health.stopped[self._name] = str(error)
        await self._sleep(RECHECK_SECONDS)

    async def _check_for_rewind(self) -> None:
        stored = await self._store.stored_offset(self._source.partition)
        if stored is None or (stored.next_offset, stored.mark) != (self._next_offset, self._mark):
            log.warning(
                "the offset or its token has changed: it was set, a conversation forgotten, or commits were lost"
            )
            await self._seek_to_stored_offset()

    async def _seek_to_stored_offset(self) -> None:
        partition, cluster_id = self._source.partition, await self._source.cluster_id()
        first, end = await self._source.bounds()
        stored = await self._store.stored_offset(partition)
        if stored is None:
            await self._store.create_offset(partition, StoredOffset(cluster_id, first))
            stored = await self._store.stored_offset(partition) or StoredOffset(cluster_id, first)
        remedy = f"run `conversation-consumer offsets set {partition.topic} {partition.number} OFFSET`"
        if stored.cluster_id != cluster_id:
            raise PartitionStoppedError(
                f"the stored offset counts in cluster {stored.cluster_id}, not {cluster_id}: {remedy}"
            )
        if not first <= stored.next_offset <= end:
            raise PartitionStoppedError(
                f"stored offset {stored.next_offset} is outside the log {first}..{end}: {remedy}"
            )
        if stored.next_offset != self._unreadable_at or stored.next_offset == end:
            self._health.stopped.pop(self._name, None)
        if stored.next_offset >= self._unwritten_end:  # what was not answered in time may be written all the same
            self._health.outages.pop(self._writing, None)
        self._next_offset, self._mark = stored.next_offset, stored.mark
        self._cache.clear()
        self._source.seek(stored.next_offset)
        log.info("partition started", next_offset=stored.next_offset)

    async def _process(self, records: Sequence[Record]) -> None:
        place = self._source.partition
        facts = BatchFacts(place.group, place.topic, place.number, records[0].offset, len(records))
        with (
            self._tracing.batch(facts, lambda: (context for record in records if (context := record.trace_context()))),
            bound_contextvars(**known(trace_id=self._tracing.trace_id())),
        ):
            await self._apply_records(records)

    async def _apply_records(self, records: Sequence[Record]) -> None:
        """Decode, dead letters, effects and offset, advisory commit: in this order, so that nothing is skipped."""
        self._metrics.batch_events.observe(len(records))
        clock = asyncio.get_running_loop().time
        started = clock()
        good, bad = decode_all(records, self._settings.max_record_bytes)
        await self._dead_letter(bad)
        progress = Progress(self._source.partition, self._next_offset, records[-1].offset + 1, self._mark)
        try:
            with self._metrics.inflight(len(good)):
                self._mark = await self._apply(good, progress)
        except StaleOwnerError as error:
            log.warning("another owner, a rewind or a forgotten conversation moved the offset", error=str(error))
            await self._start()
        except TooSlowError as error:
            await self._reduce_batches(records, error)
        else:
            self._health.outages.pop(self._writing, None)
            self._batch_limit = min(2 * self._batch_limit, self._settings.max_batch)
            self._next_offset = progress.end
            self._source.applied(progress.end)
            log.debug(
                "batch applied",
                first_offset=records[0].offset,
                next_offset=progress.end,
                events=len(good),
                dead_letters=len(bad),
                seconds=round(clock() - started, 6),
            )

    async def _reduce_batches(self, records: Sequence[Record], error: TooSlowError) -> None:
        """A database that cannot write so much in time may be able to write half of it."""
        self._batch_limit = max(1, len(records) // 2)
        self._unwritten_end = records[-1].offset + 1
        log.warning(
            "the database is too slow: smaller batches",
            records=self._batch_limit,
            error=str(error),
        )
        self._health.outages[self._writing] = str(error)
        await self._sleep(self._rng.uniform(0, SLOW_SECONDS))
        await self._start()

    async def _apply(self, good: Sequence[tuple[Record, Event]], progress: Progress) -> int:
        """Writes the events with their offset; the fencing token that the last transaction left."""

        async def dead_letter(refused: Sequence[int]) -> None:
            of_refused = [good[i] for i in refused]
            await self._dead_letter(
                [
                    DeadLetter(record, Reason.REFUSED, "PostgreSQL refused a value", event.event_id)
                    for record, event in of_refused
                ]
            )

        async def back_off(seconds: float) -> None:
            await self._locked_rows.report(batch, good)
            await self._sleep(seconds)

        batch = Batch(
            [event for _, event in good],
            progress,
            topic=progress.partition.topic,
            cache=self._cache,
            dead_letter=dead_letter,
        )
        try:
            await self._through_outages(lambda: self._service.consume(batch, back_off), but=TooSlowError)
        finally:
            self._locked_rows.clear()
        assert batch.progress is not None
        return batch.progress.mark

    async def _dead_letter(self, letters: Sequence[DeadLetter]) -> None:
        """Returns when the dead letters are acknowledged: nothing else of their batch comes before."""
        if not letters:
            return
        await self._through_outages(lambda: self._send(letters))
        for letter in letters:
            self._metrics.dead_lettered(letter.record.topic, letter.reason)
            self._health.last_dead_letters.appendleft(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {letter.reason}")
            log.warning(
                "dead letter",
                reason=letter.reason.value,
                error=letter.error,
                **letter.record.identity(letter.event_id),
            )

    async def _send(self, letters: Sequence[DeadLetter]) -> None:
        """Where brokers acknowledge nothing, a producer may try again by itself without limit: an outage as well."""
        silent = UnavailableError("the dead-letter topic acknowledges nothing")
        noting = asyncio.get_running_loop().call_later(UNACKNOWLEDGED_SECONDS, self._note_outage, silent, 0.0)
        try:
            await self._dead_letters.send(letters)
        finally:
            noting.cancel()

    async def _through_outages(
        self, action: Callable[[], Awaitable[None]], but: type[Exception] | tuple[()] = ()
    ) -> None:
        """Retries for as long as an outage lasts: the partition waits, not ready, while heartbeats go on."""
        await retried(
            lambda _: action(), UnavailableError, self._backoff, self._sleep, but=but, before_sleep=self._note_outage
        )
        if self._health.outages.pop(self._name, None):
            log.info("outage over")

    def _note_outage(self, error: BaseException, _: float) -> None:
        if self._name not in self._health.outages:
            log.warning("outage: partition paused", error=str(error))
        self._health.outages[self._name] = str(error)
        self._source.pause()

    async def _sleep(self, seconds: float) -> None:
        if await self._source.revoked_within(seconds):
            raise DrainingError(self._name)
