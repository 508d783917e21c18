"""The poll loop over a client in memory: every record reaches its worker, and nothing is committed too early."""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    CorruptRecordException,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaTimeoutError,
    UnsupportedCodecError,
)

from consumer.errors import PartitionStoppedError, StalledError, UnavailableError
from consumer.kafka.client import STOP_SECONDS
from consumer.kafka.partition import STALL_SECONDS, AssignedPartition
from consumer.kafka.placement import home_of
from consumer.kafka.source import LAG_SECONDS, POLL_SECONDS, KafkaSource
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics, Part
from consumer.offsets import Partition
from consumer.settings import KafkaSettings, WorkerSettings
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer

pytestmark = pytest.mark.virtual_time
LONG = 1000.0
KAFKA = KafkaSettings(group_id="group", topics=("events",), rebalance_timeout_seconds=30, commit_interval_seconds=1)
WORKER = WorkerSettings(max_buffered=4, drain_seconds=20)
PLACES = [TopicPartition("events", number) for number in range(3)]
UNREADABLE = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")


Worker = Callable[["Group", AssignedPartition], Awaitable[None]]


class Group:
    """A source in a group that a test controls, with workers that apply what they get at once."""

    def __init__(self, worker: Worker, client: type[MemoryConsumer]) -> None:
        self.cluster = MemoryCluster()
        self.cluster.create("events", len(PLACES))
        self.health = Health()
        self.metrics = Metrics(KAFKA.topics, parts=Part.REPLICA)
        self.assigned: dict[TopicPartition, AssignedPartition] = {}
        self.values: defaultdict[TopicPartition, list[bytes | None]] = defaultdict(list)
        self.stopped: dict[TopicPartition, str] = {}
        self.source = KafkaSource(
            KAFKA,
            WORKER,
            self.metrics,
            self.health,
            partial(worker, self),
            client=partial(client, self.cluster),
            cluster_id=self.cluster.id,
        )
        self.running = asyncio.create_task(self.source.run())

    @property
    def client(self) -> MemoryConsumer:
        return self.cluster.consumers[-1]

    async def assign(self, *tps: TopicPartition) -> None:
        await asyncio.sleep(0)
        await self.client.assign(*tps)

    def publish(self, tp: TopicPartition, *values: bytes) -> None:
        for value in values:
            self.cluster.append(tp, value)

    def committed(self, tp: TopicPartition) -> int | None:
        return self.cluster.committed.get(("group", tp))

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)

    async def stop(self) -> None:
        self.source.stop()
        await self.running


async def apply_all(group: Group, partition: AssignedPartition) -> None:
    """A worker without a database: goes on at the first offset."""
    tp = TopicPartition(partition.partition.topic, partition.partition.number)
    group.assigned[tp] = partition
    partition.seek(group.committed(tp) or 0)
    try:
        while not partition.is_revoked():
            if records := await partition.take(100, LONG):
                group.values[tp] += [record.value for record in records]
                partition.applied(records[-1].offset + 1)
    except PartitionStoppedError as error:
        group.stopped[tp] = str(error)


@asynccontextmanager
async def grouped(
    *tps: TopicPartition, worker: Worker = apply_all, client: type[MemoryConsumer] = MemoryConsumer
) -> AsyncIterator[Group]:
    """A source with these partitions, which is stopped at the end."""
    group = Group(worker, client)
    await group.assign(*tps)
    try:
        yield group
    finally:
        group.cluster.heal()
        group.source.stop()
        await asyncio.wait([group.running])


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_every_record_reaches_the_worker_of_its_partition_once_and_in_order() -> None:
    async with grouped(*PLACES) as group:
        for number in range(20):
            for tp in PLACES:
                group.publish(tp, b"%d" % number)
            await asyncio.sleep(0.05 if number % 2 else 0)
        await asyncio.sleep(5)

    assert group.values == {tp: [b"%d" % number for number in range(20)] for tp in PLACES}


async def test_a_partition_outside_of_the_log_fails_alone() -> None:
    async with grouped() as group:
        group.publish(PLACES[0], b"a", b"b", b"c")
        group.publish(PLACES[1], b"other")
        group.cluster.delete_before(PLACES[0], 2)
        await group.assign(*PLACES)
        await asyncio.sleep(1)
        group.publish(PLACES[2], b"later")
        await asyncio.sleep(1)

    assert group.stopped == {PLACES[0]: "the next record is no longer in the log"}
    assert group.values == {PLACES[1]: [b"other"], PLACES[2]: [b"later"]}
    assert group.committed(PLACES[0]) == 0


@pytest.mark.parametrize("error", [UNREADABLE, CorruptRecordException("CRC"), UnsupportedCodecError("zstd")])
@pytest.mark.parametrize("place", PLACES)
async def test_a_record_that_cannot_be_read_stops_its_partition_and_no_other_one(
    place: TopicPartition, error: Exception
) -> None:
    async with grouped() as group:
        for tp in PLACES:
            group.publish(tp, b"0", b"1", b"2")
        group.cluster.append_unreadable(place, error)
        for tp in PLACES:
            group.publish(tp, b"3")
        await group.assign(*PLACES)
        await asyncio.sleep(5)

    others = {tp: [b"0", b"1", b"2", b"3"] for tp in PLACES if tp != place}
    assert {tp: values for tp, values in group.values.items() if tp != place} == others
    assert group.values[place] in ([], [b"0", b"1", b"2"])
    offset = len(group.values[place])
    assert group.stopped == {place: f"a record from offset {offset} on cannot be read: {type(error).__name__}"}
    assert group.committed(place) == offset


async def test_a_record_that_cannot_be_read_stops_one_of_two_partitions() -> None:
    async with grouped() as group:
        group.cluster.append_unreadable(PLACES[1], UNREADABLE)
        group.publish(PLACES[0], b"a")
        await group.assign(PLACES[0], PLACES[1])
        await asyncio.sleep(5)

    assert group.values == {PLACES[0]: [b"a"]}
    assert group.stopped.keys() == {PLACES[1]}


async def test_a_stopped_partition_goes_on_where_a_seek_leads() -> None:
    async with grouped() as group:
        group.cluster.append_unreadable(PLACES[0], UNREADABLE)
        group.publish(PLACES[0], b"after")
        await group.assign(PLACES[0])
        await asyncio.sleep(1)

        group.assigned[PLACES[0]].seek(1)
        (record,) = await group.assigned[PLACES[0]].take(10, LONG)

    assert record.value == b"after"


async def test_a_revocation_waits_for_the_workers_and_commits_what_they_have_applied() -> None:
    async def finish_slowly(group: Group, partition: AssignedPartition) -> None:
        partition.seek(0)
        (record,) = await partition.take(1, LONG)
        await partition.revoked_within(LONG)
        await asyncio.sleep(20)
        partition.applied(record.offset + 1)

    async with grouped(PLACES[0], worker=finish_slowly) as group:
        group.publish(PLACES[0], b"a", b"b")
        await asyncio.sleep(1)
        started = now()

        await group.client.revoke()

        assert now() == started + 20
        assert group.committed(PLACES[0]) == 1
        assert not group.client.listener_errors


async def test_a_worker_that_hangs_holds_the_rebalance_up_no_longer_than_the_limit() -> None:
    async def hang(group: Group, partition: AssignedPartition) -> None:
        partition.seek(0)
        await asyncio.sleep(LONG)

    async with grouped(PLACES[0], worker=hang) as group:
        started = now()

        await group.client.revoke()

        assert now() == started + 0.8 * KAFKA.rebalance_timeout_seconds
        assert group.committed(PLACES[0]) == 0


async def test_a_rebalance_delivers_nothing_to_a_revoked_partition() -> None:
    async with grouped(*PLACES) as group:
        await asyncio.sleep(1)
        before = dict(group.assigned)
        await group.client.revoke()
        for tp in PLACES:
            group.publish(tp, b"during")
        await asyncio.sleep(1)
        nothing_during = not group.values

        await group.client.assign(PLACES[1])
        await asyncio.sleep(1)

    assert nothing_during
    assert group.values == {PLACES[1]: [b"during"]}
    assert all(partition.is_revoked() for partition in before.values())
    assert not any(partition.wants_records for partition in before.values())
    assert [len(await partition.take(10, LONG)) for partition in before.values()] == [0, 0, 0]


async def test_what_is_fetched_of_a_partition_given_up_meanwhile_is_forgotten() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.publish(PLACES[0], b"a")
        await asyncio.sleep(0)
        group.source._assigned.clear()

        await asyncio.sleep(1)

        assert not group.running.done()
    assert group.values == {}


async def test_a_record_that_cannot_be_read_is_nobodys_once_its_partition_is_given_up() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.cluster.append_unreadable(PLACES[0], UNREADABLE)
        await asyncio.sleep(0)
        group.source._assigned.clear()

        await asyncio.sleep(1)

        assert not group.running.done()
    assert group.stopped == {}


async def test_a_partition_that_starts_is_fetched_soon() -> None:
    async def start_late(group: Group, partition: AssignedPartition) -> None:
        await asyncio.sleep(1.01)
        started = now()
        partition.seek(0)
        await partition.take(1, LONG)
        assert now() <= started + POLL_SECONDS / 3

    async with grouped(PLACES[0], worker=start_late) as group:
        group.publish(PLACES[0], b"a")
        await asyncio.sleep(3)

        assert not group.running.done()


async def test_a_worker_gets_its_partition_with_the_group_and_the_cluster_that_the_settings_name() -> None:
    asked: list[KafkaSettings] = []

    async def cluster_id(settings: KafkaSettings) -> str:
        asked.append(settings)
        return "cluster"

    cluster = MemoryCluster()
    cluster.create("events")
    partitions: list[AssignedPartition] = []

    async def note(partition: AssignedPartition) -> None:
        partitions.append(partition)

    client = partial(MemoryConsumer, cluster)
    source = KafkaSource(KAFKA, WORKER, Metrics(), Health(), note, client=client, cluster_id=cluster_id)
    running = asyncio.create_task(source.run())
    await asyncio.sleep(0)
    await cluster.consumers[-1].assign(PLACES[0])
    await asyncio.sleep(0)
    source.stop()
    await running

    assert [partition.partition for partition in partitions] == [Partition("group", "events", 0)]
    assert await partitions[0].cluster_id() == "cluster"
    assert asked == [KAFKA]


async def test_only_what_is_applied_is_committed_and_that_regularly() -> None:
    async def take_and_hold(group: Group, partition: AssignedPartition) -> None:
        partition.seek(0)
        first = await partition.take(2, LONG)
        partition.applied(first[-1].offset + 1)
        await partition.take(2, LONG)
        await partition.revoked_within(LONG)

    async with grouped(PLACES[0], worker=take_and_hold) as group:
        group.publish(PLACES[0], b"a", b"b", b"c", b"d")
        await asyncio.sleep(KAFKA.commit_interval_seconds + 0.1)
        first = group.committed(PLACES[0])
        await asyncio.sleep(10)

    assert first == 2
    assert group.committed(PLACES[0]) == 2


async def test_a_partition_that_has_not_started_commits_nothing() -> None:
    async def wait(group: Group, partition: AssignedPartition) -> None:
        await partition.revoked_within(LONG)

    async with grouped(PLACES[0], worker=wait) as group:
        await asyncio.sleep(5)

    assert group.cluster.committed == {}
    assert group.sample("conversation_offset_commits_total", result="ok") in (None, 0)


@pytest.mark.parametrize("error", [CommitFailedError(), IllegalStateError("not assigned")])
async def test_a_commit_that_fails_is_counted_and_forgotten(error: Exception) -> None:
    async with grouped(PLACES[0]) as group:
        group.cluster.raise_next("commit", error)
        await asyncio.sleep(1.5)
        failed = group.sample("conversation_offset_commits_total", result="error")
        none = group.committed(PLACES[0])

        await asyncio.sleep(1)

        assert (failed, none) == (1, None)
        assert group.committed(PLACES[0]) == 0
        assert group.sample("conversation_offset_commits_total", result="ok") == 1


async def test_a_commit_that_hangs_is_given_up() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(0.5)
        group.cluster.fail()
        await asyncio.sleep(0.6 + STOP_SECONDS)

        assert group.sample("conversation_offset_commits_total", result="error") == 1
        started = now()
        await group.client.revoke()
        assert now() <= started + STOP_SECONDS


async def test_a_worker_that_fails_ends_the_process_with_its_error_and_the_others_in_order() -> None:
    async def fail(group: Group, partition: AssignedPartition) -> None:
        if partition.partition.number == 0:
            await asyncio.sleep(3)
            raise ZeroDivisionError
        await apply_all(group, partition)

    async with grouped(*PLACES, worker=fail) as group:
        group.publish(PLACES[1], b"a")

        with pytest.raises(ZeroDivisionError):
            await group.running

        assert group.health.draining
        assert group.committed(PLACES[1]) == 1
        assert group.committed(PLACES[0]) is None
        assert group.client.is_stopped


async def test_the_first_error_is_the_one_that_is_raised() -> None:
    async def fail(group: Group, partition: AssignedPartition) -> None:
        await partition.revoked_within(1 + partition.partition.number)
        raise ValueError(partition.partition.number)

    async with grouped(*PLACES, worker=fail) as group:
        with pytest.raises(ValueError, match="0"):
            await group.running


async def test_an_error_of_the_group_comes_to_light_although_nothing_is_fetched() -> None:
    async def wait(group: Group, partition: AssignedPartition) -> None:
        await partition.revoked_within(LONG)

    async with grouped(PLACES[0], worker=wait) as group:
        await asyncio.sleep(1)
        group.cluster.raise_next("getmany", GroupAuthorizationFailedError("group"))

        with pytest.raises(UnavailableError, match="CONSUMER_KAFKA__GROUP_ID"):
            await group.running


async def test_stop_finishes_what_is_in_hand_commits_it_and_leaves() -> None:
    async def finish(group: Group, partition: AssignedPartition) -> None:
        partition.seek(0)
        (record,) = await partition.take(1, LONG)
        await partition.revoked_within(LONG)
        await asyncio.sleep(10)
        partition.applied(record.offset + 1)

    async with grouped(PLACES[0], worker=finish) as group:
        group.publish(PLACES[0], b"a", b"b")
        await asyncio.sleep(1)

        group.source.stop()
        group.source.stop()
        assert group.health.draining
        await group.running

        assert group.health.draining
        assert group.committed(PLACES[0]) == 1
        assert group.client.is_stopped


async def test_stop_waits_for_a_worker_no_longer_than_the_drain_limit() -> None:
    async def hang(group: Group, partition: AssignedPartition) -> None:
        await asyncio.sleep(LONG)

    async with grouped(PLACES[0], worker=hang) as group:
        await asyncio.sleep(1)
        started = now()

        await group.stop()

        assert started + WORKER.drain_seconds <= now() < started + WORKER.drain_seconds + 1


async def test_stop_is_bounded_while_no_broker_answers_and_while_the_group_rebalances() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.cluster.fail()
        await group.client.revoke()
        started = now()

        await group.stop()

        assert now() < started + 2 * STOP_SECONDS


@pytest.mark.parametrize("seconds", [0.0, LONG])
async def test_a_client_that_hangs_or_fails_at_its_stop_hides_nothing_and_delays_little(seconds: float) -> None:
    class Stubborn(MemoryConsumer):
        async def stop(self) -> None:
            self.crash()
            await asyncio.sleep(seconds)
            raise GroupAuthorizationFailedError("group")

    async with grouped(PLACES[0], client=Stubborn) as group:
        await asyncio.sleep(1)
        started = now()

        await group.stop()

        assert now() <= started + STOP_SECONDS + 2 * POLL_SECONDS


async def test_a_group_that_assigns_partitions_to_a_stopping_process_starts_nothing() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.source.stop()

        await group.source.on_partitions_assigned([PLACES[1]])

        assert PLACES[1] not in group.assigned


async def test_the_probes_and_gauges_follow_the_group() -> None:
    def probes() -> tuple[bool, float | None, float | None]:
        ready = group.sample("conversation_ready")
        return group.health.joined, group.sample("conversation_assigned_partitions"), ready

    async with grouped(PLACES[0], PLACES[1]) as group:
        await asyncio.sleep(1)
        joined = (
            group.health.joined,
            group.sample("conversation_assigned_partitions"),
            group.sample("conversation_ready"),
        )

        await group.client.revoke()
        revoked = (
            group.health.joined,
            group.sample("conversation_assigned_partitions"),
            group.sample("conversation_ready"),
        )

    assert joined == (True, 2, 1)
    assert time.monotonic() - group.health.polled_at < LONG
    assert revoked == (False, 0, 0)
    assert group.sample("conversation_rebalances_total", phase="revoked") == 2
    assert group.sample("conversation_rebalances_total", phase="assigned") == 1


async def test_a_stalled_partition_ends_the_process() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.client.stop_fetching()
        group.publish(PLACES[0], b"never fetched")

        with pytest.raises(StalledError, match="events"):
            await group.running

        assert STALL_SECONDS < now() < STALL_SECONDS + 4 * LAG_SECONDS


async def test_brokers_that_do_not_answer_make_the_replica_not_ready_until_they_do() -> None:
    async with grouped(PLACES[0]) as group:
        await asyncio.sleep(1)
        group.cluster.fail()
        await asyncio.sleep(LAG_SECONDS + STOP_SECONDS)
        during = dict(group.health.outages)

        group.cluster.heal()
        await asyncio.sleep(2 * LAG_SECONDS)

        assert during == {"Kafka": "does not answer: TimeoutError"}
        assert group.health.outages == {}
        assert not group.running.done()


async def test_what_the_brokers_answer_instead_is_named() -> None:
    async with grouped(PLACES[0]) as group:
        group.cluster.raise_next("end_offsets", KafkaTimeoutError())

        await asyncio.sleep(LAG_SECONDS + 0.1)

        assert group.health.outages == {"Kafka": "does not answer: KafkaTimeoutError"}


async def test_lag_is_what_the_brokers_have_beyond_what_is_applied() -> None:
    async def take_none(group: Group, partition: AssignedPartition) -> None:
        partition.seek(1)
        await partition.revoked_within(LONG)

    async with grouped(PLACES[0], worker=take_none) as group:
        group.publish(PLACES[0], *(b"%d" % number for number in range(10)))
        await asyncio.sleep(LAG_SECONDS + 1)

        assert group.sample("conversation_lag_records", topic="events", partition="0") == 9


async def test_lag_takes_commit_markers_for_no_records() -> None:
    async with grouped(PLACES[0]) as group:
        group.publish(PLACES[0], b"a")
        group.cluster.append_marker(PLACES[0])
        await asyncio.sleep(2 * LAG_SECONDS)

        assert group.sample("conversation_lag_records", topic="events", partition="0") == 0


async def test_a_full_buffer_is_fetched_no_further() -> None:
    async def take_none(group: Group, partition: AssignedPartition) -> None:
        group.assigned[PLACES[0]] = partition
        partition.seek(0)
        await partition.revoked_within(LONG)

    async with grouped(PLACES[0], worker=take_none) as group:
        group.publish(PLACES[0], *(b"%d" % number for number in range(50)))
        await asyncio.sleep(1)

        assert group.sample("conversation_paused_partitions") == 1
        assert len(group.assigned[PLACES[0]]._buffer) == WORKER.max_buffered


async def test_misplaced_records_are_counted_by_the_partitions_that_there_are_since_the_last_rebalance() -> None:
    keys = [key for number in range(100) if home_of(key := b"c-%d" % number, 3) == 0 and home_of(key, 4) != 0]
    async with grouped(PLACES[0]) as group:
        group.cluster.append(PLACES[0], b"", keys[0])
        await asyncio.sleep(1)
        before = group.sample("conversation_misplaced_records_total", topic="events")
        group.cluster.add_partition("events")
        await group.assign(PLACES[0])
        group.cluster.append(PLACES[0], b"", keys[1])
        await asyncio.sleep(1)

    assert before in (None, 0)
    assert group.sample("conversation_misplaced_records_total", topic="events") == 1


async def test_the_client_commits_and_resets_nothing_by_itself_and_reads_committed_records() -> None:
    async with grouped(PLACES[0]) as group:
        arguments = group.client.arguments

    assert arguments["bootstrap_servers"] == KAFKA.bootstrap_servers
    assert arguments["group_id"] == "group"
    assert arguments["enable_auto_commit"] is False
    assert arguments["auto_offset_reset"] == "none"
    assert arguments["isolation_level"] == "read_committed"
    assert arguments["partition_assignment_strategy"] == (RoundRobinPartitionAssignor,)
    assert arguments["session_timeout_ms"] == 10_000
    assert arguments["heartbeat_interval_ms"] == 3_333
    assert arguments["rebalance_timeout_ms"] == 30_000
    assert arguments["max_poll_interval_ms"] > 1e9
    assert group.client.topics == ["events"]
