"""The poll loop: fetches for all assigned partitions, runs a worker for each, commits offsets."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache, partial

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from consumer.errors import ConsumerError, StalledError
from consumer.kafka.admin import cluster_id
from consumer.kafka.client import STOP_SECONDS, open_consumer, start
from consumer.kafka.connection import connection_arguments, milliseconds
from consumer.kafka.errors import classified
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.placement import Placement
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.settings import KafkaSettings, WorkerSettings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
LAG_SECONDS = 2.0
NOWHERE = TopicPartition("", 0)
UNREADABLE = (UnicodeDecodeError, CorruptRecordException, UnsupportedCodecError)
"""What the client raises for a record that it cannot read, such as one with a header name that is not UTF-8."""

RunWorker = Callable[[AssignedPartition], Awaitable[None]]


class KafkaSource(ConsumerRebalanceListener):  # type: ignore[misc]
    """Polls Kafka for all assigned partitions and runs a worker for each."""

    def __init__(
        self,
        settings: KafkaSettings,
        worker: WorkerSettings,
        metrics: Metrics,
        health: Health,
        run_worker: RunWorker,
        *,
        client: Callable[..., AIOKafkaConsumer] = open_consumer,
        cluster_id: Callable[[KafkaSettings], Awaitable[str]] = cluster_id,
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._metrics = metrics
        self._health = health
        self._run_worker = run_worker
        self._open_client = client
        self._cluster_id = partial(cluster_id, settings)
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._stopping = asyncio.Event()
        self._partitions_of = lru_cache(maxsize=None)(self._count_partitions)
        self._placement = Placement(metrics)
        metrics.watch_lag(lambda: filter(None, [partition.lag() for partition in self._assigned.values()]))
        metrics.stopped_partitions.set_function(lambda: len(health.stopped))
        metrics.paused_partitions.set_function(lambda: sum(not p.wants_records for p in self._assigned.values()))

    async def run(self) -> None:
        """Until `stop`. Leaves the group in good order; raises what ended a worker unexpectedly."""
        self._client = self._open_client(
            **connection_arguments(self._settings),
            group_id=self._settings.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            session_timeout_ms=milliseconds(self._settings.session_timeout_seconds),
            heartbeat_interval_ms=milliseconds(self._settings.session_timeout_seconds / 3),
            rebalance_timeout_ms=milliseconds(self._settings.rebalance_timeout_seconds),
            # The poll loop never waits for the work, so a stuck worker shows in /livez, not in an eviction.
            max_poll_interval_ms=2**31 - 1,
        )
        self._client.subscribe(topics=list(self._settings.topics), listener=self)
        try:
            await self._start()
        except ConsumerError:
            await self._leave()
            raise
        if not self._stopping.is_set():
            await self._work()
        await self._leave()
        if self._failure is not None:
            raise self._failure

    async def _start(self) -> None:
        """Until the client runs, or `stop`: it waits without limit for a broker that coordinates the group."""
        starting = asyncio.create_task(start(self._client, self._settings))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.wait((starting, stopping))

    async def _work(self) -> None:
        work = (self._poll, self._commit_regularly, self._watch_log_ends)
        poll, *helpers = [asyncio.create_task(self._watched(task())) for task in work]
        await self._stopping.wait()
        # A poll may wait for a rebalance without limit; before it is cancelled it may finish what it has in hand.
        await asyncio.wait([poll], timeout=2 * POLL_SECONDS)
        for task in (poll, *helpers):
            task.cancel()

    def stop(self) -> None:
        """Ends `run`: batches in flight are finished, offsets committed, the group left. Stopped twice is fine."""
        self._health.draining = True
        self._stopping.set()

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Finishes the transactions, not the backoffs. Must not raise: aiokafka would only log it."""
        self._metrics.rebalances.labels("revoked").inc()
        self._health.joined = False
        await self._release(self._settings.rebalance_timeout_seconds * 0.8)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Starts the workers; each asks the database where to go on, so nothing is waited for here."""
        self._metrics.rebalances.labels("assigned").inc()
        if self._stopping.is_set():
            return
        self._partitions_of.cache_clear()
        for tp in assigned:
            partition = Partition(self._settings.group_id, tp.topic, tp.partition)
            self._assigned[tp] = AssignedPartition(self._client, partition, self._cluster_id, self._worker)
            self._tasks[tp] = asyncio.create_task(self._watched(self._run_worker(self._assigned[tp])))
        self._metrics.assigned_partitions.set(len(self._assigned))
        self._health.joined = True

    async def _watched(self, work: Awaitable[None]) -> None:
        """A task that fails ends the process: what it did is safe, what it would do next is not known."""
        try:
            await work
        except Exception as error:
            self._failure = self._failure or error
            self._stopping.set()

    async def _poll(self) -> None:
        while not self._stopping.is_set():
            self._health.polled_at = time.monotonic()
            self._metrics.last_poll.set_to_current_time()
            wanted = [tp for tp, partition in self._assigned.items() if partition.wants_records]
            # Polled even with nothing to fetch: that is how errors of the group come to light.
            with classified():
                count = await self._fetch(wanted or [NOWHERE], POLL_SECONDS if wanted else POLL_SECONDS / 4)
            if 0 < count < self._worker.max_batch and self._worker.linger:
                await self._gather(wanted)

    async def _gather(self, wanted: Sequence[TopicPartition]) -> None:
        """Lingers. Brokers have what comes meanwhile in one answer; the client would fetch the first of it ahead."""
        assigned = self._client.assignment()
        self._client.pause(*assigned.intersection(wanted))
        await asyncio.sleep(self._worker.linger.total_seconds())
        started = {tp for tp, partition in self._assigned.items() if partition.next_offset is not None}
        self._client.resume(*self._client.assignment() & started)

    async def _fetch(self, wanted: Sequence[TopicPartition], seconds: float) -> int:
        """How many records came."""
        try:
            fetched = await self._client.getmany(
                *wanted, timeout_ms=milliseconds(seconds), max_records=self._worker.max_buffered
            )
        except OffsetOutOfRangeError as error:
            for tp in self._assigned.keys() & set(error.args[0]):
                self._assigned[tp].fail("the next record is no longer in the log")
            return 0
        except UNREADABLE as error:
            await self._find_unreadable(wanted, error)
            return 0
        for tp, records in fetched.items():
            self._deliver(tp, records)
        return sum(map(len, fetched.values()))

    async def _find_unreadable(self, wanted: Sequence[TopicPartition], error: Exception) -> None:
        """Stops the one partition whose next record the client cannot read; all are fetched again, one by one."""
        for tp in self._assigned.keys() & set(wanted):
            self._assigned[tp].refetch()
        if len(wanted) > 1:
            for tp in wanted:
                await self._fetch([tp], POLL_SECONDS)
        elif partition := self._assigned.get(wanted[0]):
            partition.fail(f"a record from offset {partition.next_offset} on cannot be read: {type(error).__name__}")

    def _deliver(self, tp: TopicPartition, records: Sequence[ConsumerRecord[bytes, bytes]]) -> None:
        """Whatever was fetched before the partition's `seek` is forgotten by it; nothing after it may be dropped."""
        if (partition := self._assigned.get(tp)) is None:
            return
        partition.append(records)
        self._placement.check(tp.topic, tp.partition, self._partitions_of(tp.topic), records)

    def _count_partitions(self, topic: str) -> int:
        return len(self._client.partitions_for_topic(topic) or (0,))

    async def _release(self, seconds: float) -> None:
        """Gives all partitions up and waits for their workers; one that hangs is left to the guard."""
        for partition in self._assigned.values():
            partition.revoke()
        if self._tasks:
            _, hanging = await asyncio.wait(self._tasks.values(), timeout=seconds)
            if hanging:
                log.error("workers still busy at the end of the drain limit", count=len(hanging), seconds=seconds)
        await self._commit()
        self._assigned.clear()
        self._tasks.clear()
        self._metrics.assigned_partitions.set(0)

    async def _leave(self) -> None:
        self._health.draining = True
        await self._release(self._worker.drain_seconds)
        # The client may raise here what ended its own tasks: the error of a group never joined, or a cancellation.
        await asyncio.gather(asyncio.wait_for(self._client.stop(), STOP_SECONDS), return_exceptions=True)

    async def _commit_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._settings.commit_interval_seconds)
            await self._commit()

    async def _commit(self) -> None:
        """Advisory: the database knows better, so a commit that fails is counted and forgotten."""
        offsets = {tp: p.next_offset for tp, p in self._assigned.items() if p.next_offset is not None}
        if not offsets:
            return
        try:
            await asyncio.wait_for(self._client.commit(offsets), STOP_SECONDS)
        except (KafkaError, TimeoutError) as error:
            self._metrics.offset_commits.labels("error").inc()
            log.warning("offsets not committed to Kafka", error=repr(error))
        else:
            self._metrics.offset_commits.labels("ok").inc()

    async def _watch_log_ends(self) -> None:
        while True:
            await asyncio.sleep(LAG_SECONDS)
            started = {tp: p for tp, p in self._assigned.items() if p.next_offset is not None}
            try:
                ends = await asyncio.wait_for(self._client.end_offsets(list(started)), STOP_SECONDS) if started else {}
                for tp, partition in started.items():
                    if tp in self._assigned:
                        partition.update_log_end(ends[tp], await self._position(tp))
            except (KafkaError, TimeoutError) as error:
                self._health.outages["Kafka"] = f"does not answer: {type(error).__name__}"
                continue
            self._health.outages.pop("Kafka", None)
            if stalled := [partition.partition for partition in started.values() if partition.stalled]:
                raise StalledError(f"no record of {stalled} arrives although there are some")

    async def _position(self, tp: TopicPartition) -> int | None:
        """Where the client reads next, past commit markers; unknown while the partition is being given up."""
        return int(await asyncio.wait_for(self._client.position(tp), STOP_SECONDS)) if tp in self._assigned else None
