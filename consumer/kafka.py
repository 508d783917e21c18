"""Kafka: poll, seek, commit, dead letters, topics. The only aiokafka; its errors are classified here, once."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    MessageSizeTooLargeError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    UnsupportedCodecError,
    for_code,
)
from aiokafka.partitioner import murmur2

from consumer.errors import ConfigurationError, PartitionStoppedError, StalledError, UnavailableError
from consumer.health import Health
from consumer.metrics import Lag, Metrics
from consumer.records import DeadLetter, Record
from consumer.service import Partition
from consumer.settings import KafkaSettings, WorkerSettings

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.1
LAG_SECONDS = 2.0
STOP_SECONDS = 5.0
NOWHERE = TopicPartition("", 0)
UNREADABLE = (UnicodeDecodeError, CorruptRecordException, UnsupportedCodecError)
"""What the client raises for a record that it cannot read, such as one with a header name that is not UTF-8."""
MAX_KEY_BYTES = 800
"""No valid key is longer: 200 characters in UTF-8."""
STALL_SECONDS = 60.0
"""How long a partition may be behind without a record arriving before the process ends itself: aiokafka can stall
silently after a broker restart, and a restart of ours mends it."""
HEADER = "__consumer.errors."
INFLATED = 64
"""How many times its compressed size a record may have."""
RETENTION_SLACK = timedelta(hours=2)
"""Beyond a topic's settings: brokers take records dated an hour ahead, and look for old segments every five minutes."""
FOR_EVER_MS = 100 * 365 * 86_400_000
"""A century: who sets more means no limit."""
HEADER_BYTES = 1024
"""Room that the error headers of a dead letter may take beyond the record."""


class AssignedPartition:
    """See `worker.PartitionLog`: one partition, from its assignment to its revocation."""

    def __init__(
        self,
        client: AIOKafkaConsumer,
        partition: Partition,
        cluster: Callable[[], Awaitable[str]],
        settings: WorkerSettings,
    ) -> None:
        self.partition = partition
        self.next_offset: int | None = None
        self.log_end = 0
        self._fetched_to = 0
        self._read_to = 0
        self._waiting_since = time.monotonic()
        self._client = client
        self._tp = TopicPartition(partition.topic, partition.number)
        self._cluster = cluster
        self._settings = settings
        self._buffer: list[Record] = []
        self._buffered_bytes = 0
        self._oldest: int | None = None
        self._paused = True
        self._failed: str | None = None
        self._news = asyncio.Event()
        self._given_up = asyncio.Event()
        client.pause(self._tp)

    async def cluster_id(self) -> str:
        return await self._cluster()

    async def bounds(self) -> tuple[int, int]:
        with _outages():
            first = await self._client.beginning_offsets([self._tp])
            end = await self._client.end_offsets([self._tp])
        self.log_end = end[self._tp]
        return first[self._tp], end[self._tp]

    def seek(self, offset: int) -> None:
        self._buffer.clear()
        self._buffered_bytes = 0
        self._oldest = None
        self._failed = None
        self._paused = False
        self.next_offset = offset
        self._fetch_from(offset)

    def refetch(self) -> None:
        """Has everything after the buffer fetched again: a failed poll may have dropped what it had fetched."""
        if self.next_offset is not None:
            self._fetch_from(self._fetched_to)

    def _fetch_from(self, offset: int) -> None:
        self._fetched_to = self._read_to = offset
        self._waiting_since = time.monotonic()
        if not self._given_up.is_set():
            self._client.seek(self._tp, offset)
            self._client.resume(self._tp)

    async def take(self, limit: int, seconds: float) -> Sequence[Record]:
        self._paused = False
        if not (self._buffer or self._failed or self._given_up.is_set()):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), seconds)
        if self._given_up.is_set():
            return ()
        if not self._buffer and self._failed:
            raise PartitionStoppedError(self._failed)
        if not self._buffer:
            return ()
        taken = self._buffer[:limit]
        del self._buffer[:limit]
        self._buffered_bytes -= _size(taken)
        self._oldest = taken[0].timestamp
        return taken

    def is_given_up(self) -> bool:
        return self._given_up.is_set()

    def applied(self, next_offset: int) -> None:
        self.next_offset = next_offset
        self._oldest = None
        self._waiting_since = time.monotonic()

    def pause(self) -> None:
        self._paused = True

    async def given_up_within(self, seconds: float) -> bool:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._given_up.wait(), seconds)
        return self._given_up.is_set()

    @property
    def hungry(self) -> bool:
        """Whether it should be fetched: started, not waiting for an outage to end, and with room in its buffer."""
        room = (
            len(self._buffer) < self._settings.max_buffered and self._buffered_bytes < self._settings.max_buffered_bytes
        )
        return self.next_offset is not None and not self._paused and not self._failed and room

    def put(self, records: Sequence[ConsumerRecord[bytes, bytes]]) -> None:
        fetched = [_record(record) for record in records]
        self._buffer += fetched
        self._buffered_bytes += _size(fetched)
        self._fetched_to = self._read_to = fetched[-1].offset + 1
        self._news.set()

    def fail(self, why: str) -> None:
        """What comes next cannot be had."""
        self._failed = why
        self._news.set()

    def give_up(self) -> None:
        self._given_up.set()
        self._news.set()

    def lag(self) -> Lag | None:
        """Counts from the first record not yet applied; commit markers at the end of the log are no records."""
        if self.next_offset is None:
            return None
        oldest = self._oldest if self._oldest is not None else self._buffer[0].timestamp if self._buffer else None
        done = self.next_offset if oldest is not None else max(self.next_offset, self._read_to)
        age = 0.0 if oldest is None else time.time() - oldest / 1000
        behind = max(self.log_end, self._read_to) - done
        return Lag(self.partition.topic, self.partition.number, max(0, behind), max(0.0, age))

    def look(self, log_end: int, position: int | None) -> None:
        """What the brokers say: the client itself learns the end of the log only from a fetch that works.

        `position` is past commit markers too; it may be outdated by now, so nothing is fetched by it.
        """
        self.log_end = log_end
        if position is not None and not self._buffer:
            self._read_to = max(self._read_to, position)

    @property
    def stalled(self) -> bool:
        """Behind and waiting for records, but none come."""
        waiting = self.hungry and not self._buffer and self._oldest is None
        return waiting and self.log_end > self._read_to and time.monotonic() - self._waiting_since > STALL_SECONDS


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
    ) -> None:
        self._settings = settings
        self._worker = worker
        self._metrics = metrics
        self._health = health
        self._run_worker = run_worker
        self._assigned: dict[TopicPartition, AssignedPartition] = {}
        self._tasks: dict[TopicPartition, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._stopping = asyncio.Event()
        self._partitions_of = lru_cache(maxsize=None)(self._count_partitions)
        self._home_of = lru_cache(maxsize=65536)(lambda key, partitions: (murmur2(key) & 0x7FFFFFFF) % partitions)
        metrics.watch_lag(lambda: filter(None, [partition.lag() for partition in self._assigned.values()]))
        metrics.paused_partitions.set_function(lambda: sum(not p.hungry for p in self._assigned.values()))

    async def run(self) -> None:
        """Until `stop`. Leaves the group in good order; raises what ended a worker unexpectedly."""
        self._client = AIOKafkaConsumer(
            **_connection(self._settings),
            group_id=self._settings.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            partition_assignment_strategy=(RoundRobinPartitionAssignor,),
            session_timeout_ms=_ms(self._settings.session_timeout_seconds),
            heartbeat_interval_ms=_ms(self._settings.session_timeout_seconds / 3),
            rebalance_timeout_ms=_ms(self._settings.rebalance_timeout_seconds),
            # The poll loop never waits for the work, so a stuck worker shows in /livez, not in an eviction.
            max_poll_interval_ms=2**31 - 1,
        )
        self._client.subscribe(topics=list(self._settings.topics), listener=self)
        with _outages():
            await self._client.start()
        work = (self._poll, self._commit_regularly, self._watch_log_ends)
        poll, *helpers = [asyncio.create_task(self._watched(task())) for task in work]
        await self._stopping.wait()
        # A poll may wait for a rebalance without limit; before it is cancelled it may finish what it has in hand.
        await asyncio.wait([poll], timeout=2 * POLL_SECONDS)
        for task in (poll, *helpers):
            task.cancel()
        await self._leave()
        if self._failure is not None:
            raise self._failure

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
            hungry = [tp for tp, partition in self._assigned.items() if partition.hungry]
            # Polled even with nothing to fetch: that is how errors of the group come to light.
            with _outages():
                await self._fetch(hungry or [NOWHERE], POLL_SECONDS if hungry else POLL_SECONDS / 4)

    async def _fetch(self, wanted: Sequence[TopicPartition], seconds: float) -> None:
        try:
            fetched = await self._client.getmany(
                *wanted, timeout_ms=_ms(seconds), max_records=self._worker.max_buffered
            )
        except OffsetOutOfRangeError as error:
            for tp in self._assigned.keys() & set(error.args[0]):
                self._assigned[tp].fail("the next record is no longer in the log")
            return
        except UNREADABLE as error:
            await self._find_unreadable(wanted, error)
            return
        for tp, records in fetched.items():
            self._deliver(tp, records)

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
        partition.put(records)
        count = self._partitions_of(tp.topic)
        keys = [record.key for record in records if record.key is not None and len(record.key) <= MAX_KEY_BYTES]
        here, home_of = tp.partition, self._home_of
        self._metrics.misplaced.inc(sum([home_of(key, count) != here for key in keys]))

    def _count_partitions(self, topic: str) -> int:
        return len(self._client.partitions_for_topic(topic) or (0,))

    async def _release(self, seconds: float) -> None:
        """Gives all partitions up and waits for their workers; one that hangs is left to the guard."""
        for partition in self._assigned.values():
            partition.give_up()
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
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._client.stop(), STOP_SECONDS)

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
                        partition.look(ends[tp], await self._position(tp))
            except (KafkaError, TimeoutError) as error:
                self._health.outages["Kafka"] = f"does not answer: {type(error).__name__}"
                continue
            self._health.outages.pop("Kafka", None)
            if stalled := [partition.partition for partition in started.values() if partition.stalled]:
                raise StalledError(f"no record of {stalled} arrives although there are some")

    async def _position(self, tp: TopicPartition) -> int | None:
        """Where the client reads next, past commit markers; unknown while the partition is being given up."""
        return int(await asyncio.wait_for(self._client.position(tp), STOP_SECONDS)) if tp in self._assigned else None

    async def _cluster_id(self) -> str:
        async with admin(self._settings) as client:
            return await client.cluster_id()


class KafkaProducer:
    """Sends records; every send is awaited until all replicas have it."""

    def __init__(self, producer: AIOKafkaProducer, settings: KafkaSettings) -> None:
        self._producer = producer
        self._settings = settings

    @classmethod
    @asynccontextmanager
    async def open(cls, settings: KafkaSettings, max_record_bytes: int = 2**20) -> AsyncIterator["KafkaProducer"]:
        """`max_record_bytes`: what the topics sent to allow, if it is more than Kafka's default."""
        producer = AIOKafkaProducer(
            **_connection(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=2,
            # Brokers limit what is compressed, this client what is not.
            compression_type="gzip",
            max_request_size=INFLATED * max_record_bytes,
        )
        try:
            with _outages():
                await producer.start()
            yield cls(producer, settings)
        finally:
            with contextlib.suppress(TimeoutError, KafkaError):
                await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def publish(self, topic: str, records: Iterable[tuple[bytes | None, bytes | None]]) -> None:
        """Sends (key, value) pairs, partitioned by murmur2 of the key. Raises `UnavailableError`."""
        with _outages():
            sent = [await self._send(topic, key, value) for key, value in records]
            await asyncio.gather(*sent)

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        """See `worker.DeadLetters`."""
        with _outages():
            try:
                sent = [await self._enqueue(letter) for letter in letters]
                await asyncio.gather(*sent)
            except MessageSizeTooLargeError as error:
                topic = self._settings.dead_letter_topic
                raise PartitionStoppedError(
                    f"a dead letter does not fit: raise max.message.bytes of {topic}"
                ) from error

    async def _enqueue(self, letter: DeadLetter) -> Any:
        """The future of its acknowledgement."""
        record = letter.record
        facts = {
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
            "timestamp": record.timestamp,
            "group": self._settings.group_id,
            "reason": letter.reason,
            "error": letter.error,
        }
        headers = [*record.headers, *((HEADER + name, str(fact).encode()) for name, fact in facts.items())]
        return await self._send(self._settings.dead_letter_topic, record.key, record.value, headers)

    async def _send(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> Any:
        if key is not None or value is not None:
            return await self._producer.send(topic, value, key, headers=list(headers))
        # `send` refuses a record without key and value; a batch of one does not.
        batch = self._producer.create_batch()
        batch.append(key=None, value=None, timestamp=None, headers=list(headers))
        partitions = await self._producer.partitions_for(topic)
        return await self._producer.send_batch(batch, topic, partition=min(partitions))


class KafkaAdmin:
    """Topics, their settings, and the cluster's id."""

    def __init__(self, client: AIOKafkaAdminClient) -> None:
        self._client = client

    async def cluster_id(self) -> str:
        with _outages():
            return str((await self._client.describe_cluster())["cluster_id"])

    async def topics(self) -> dict[str, int]:
        """Topic -> number of partitions."""
        with _outages():
            described = await self._client.describe_topics()
        return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}

    async def max_message_bytes(self, topic: str) -> int:
        return int((await self._configs(topic, "max.message.bytes"))["max.message.bytes"])

    async def longest_retention(self, topic: str) -> timedelta | None:
        """How old a record of the topic can become before the log drops it, at most; None if it may stay for ever.

        Whole segments are dropped, once their newest record is older than `retention.ms`; a segment takes records for
        as long as `segment.ms`. `retention.bytes` only shortens this.
        """
        configs = await self._configs(topic, "cleanup.policy", "retention.ms", "segment.ms")
        retention, segment = int(configs["retention.ms"]), int(configs["segment.ms"])
        if "delete" not in configs["cleanup.policy"] or retention < 0 or retention + segment > FOR_EVER_MS:
            return None
        return timedelta(milliseconds=retention + segment) + RETENTION_SLACK

    async def _configs(self, topic: str, *names: str) -> dict[str, str]:
        """The topic's settings by name, the broker's defaults among them."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, dict.fromkeys(names, ""))
        with _outages():
            (response,) = await self._client.describe_configs([resource])
        (described,) = response.to_object()["resources"]
        if described["error_code"]:
            error = for_code(described["error_code"]).__name__
            raise ConfigurationError(f"the settings of topic {topic} cannot be read: {error}")
        return {entry["config_names"]: entry["config_value"] for entry in described["config_entries"]}

    async def create(self, topic: str, partitions: int, replication: int, configs: dict[str, str]) -> bool:
        """Creates a topic; whether it was not there yet."""
        new = NewTopic(topic, partitions, replication, topic_configs=configs)
        with _outages():
            response = await self._client.create_topics([new])
        _, code, *message = response.to_object()["topic_errors"][0].values()
        error = for_code(code)
        if error is TopicAlreadyExistsError:
            return False
        if code:
            raise ConfigurationError(f"topic {topic} was not created: {error.__name__} {message[0] if message else ''}")
        return True


@asynccontextmanager
async def admin(settings: KafkaSettings) -> AsyncIterator[KafkaAdmin]:
    client = AIOKafkaAdminClient(**_connection(settings))
    try:
        with _outages():
            await client.start()
        yield KafkaAdmin(client)
    finally:
        await client.close()


async def check_topics(settings: KafkaSettings) -> int:
    """Returns the size limit of the dead-letter topic, in bytes.

    Raises `ConfigurationError` if a topic is missing, or a dead letter might not fit into its topic.
    """
    async with admin(settings) as client:
        there = await client.topics()
        for topic in (*settings.topics, settings.dead_letter_topic):
            if topic not in there:
                raise ConfigurationError(f"topic {topic} does not exist: run `conversation-consumer topics`")
        limit = await client.max_message_bytes(settings.dead_letter_topic)
        for topic in settings.topics:
            if (source := await client.max_message_bytes(topic)) + HEADER_BYTES > limit:
                raise ConfigurationError(
                    f"max.message.bytes of {settings.dead_letter_topic} is {limit}: raise it to at least "
                    f"{source + HEADER_BYTES}, or a dead letter of {topic} may not fit"
                )
        return limit


async def log_bounds(settings: KafkaSettings, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
    """The first offset of each partition's log, and the one after the last."""
    places = {partition: TopicPartition(partition.topic, partition.number) for partition in partitions}
    client = AIOKafkaConsumer(**_connection(settings), isolation_level="read_committed")
    with _outages():
        await client.start()
        try:
            first = await client.beginning_offsets(list(places.values()))
            end = await client.end_offsets(list(places.values()))
        finally:
            await client.stop()
    return {partition: (first[tp], end[tp]) for partition, tp in places.items()}


@contextmanager
def _outages() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise UnavailableError(f"no answer from Kafka: {error!r}") from error


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    secure: dict[str, Any] = {}
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
        if settings.ssl_certificate_file:
            context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
        secure["ssl_context"] = context
    if settings.security_protocol.startswith("SASL") and settings.sasl_password:
        secure["sasl_mechanism"] = settings.sasl_mechanism
        secure["sasl_plain_username"] = settings.sasl_username
        secure["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": "conversation-consumer",
        "request_timeout_ms": _ms(settings.request_timeout_seconds),
        "security_protocol": settings.security_protocol,
        **secure,
    }


def _record(record: "ConsumerRecord[bytes, bytes]") -> Record:
    return Record(
        record.topic, record.partition, record.offset, record.timestamp, record.key, record.value, tuple(record.headers)
    )


def _size(records: Sequence[Record]) -> int:
    return sum([len(record.value or b"") + len(record.key or b"") for record in records])


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
