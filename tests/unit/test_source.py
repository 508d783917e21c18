"""The poll loop over a client in memory: every record reaches the worker of its partition."""

import asyncio
from datetime import timedelta
from functools import partial
from itertools import pairwise

import pytest
from aiokafka import TopicPartition
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import (
    CorruptRecordException,
    UnsupportedCodecError,
)

from consumer.kafka.partition import AssignedPartition
from consumer.kafka.placement import home_of
from consumer.kafka.source import POLL_SECONDS, KafkaSource
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition
from consumer.settings import KafkaSettings, WorkerSettings
from tests.memory_kafka.cluster import MemoryCluster
from tests.memory_kafka.consumer import MemoryConsumer
from tests.unit.source_in_memory import KAFKA, LONG, PLACES, UNREADABLE, WORKER, Group, grouped, now

pytestmark = pytest.mark.virtual_time


async def test_every_record_reaches_the_worker_of_its_partition_once_and_in_order() -> None:
    async with grouped(*PLACES) as group:
        for number in range(20):
            for tp in PLACES:
                group.publish(tp, b"%d" % number)
            await asyncio.sleep(0.05 if number % 2 else 0)
        await asyncio.sleep(5)

    assert group.values == {tp: [b"%d" % number for number in range(20)] for tp in PLACES}


async def test_a_linger_gathers_what_comes_after_the_first_record() -> None:
    taken: list[tuple[float, list[bytes | None]]] = []

    async def note(_: Group, partition: AssignedPartition) -> None:
        partition.seek(0)
        while not partition.is_revoked():
            if records := await partition.take(100, LONG):
                taken.append((now(), [record.value for record in records]))

    lingering = WorkerSettings(linger=timedelta(seconds=0.5))
    async with grouped(PLACES[0], worker=note, settings=lingering) as group:
        await asyncio.sleep(1)
        began = now()
        for number in range(8):
            group.publish(PLACES[0], b"%d" % number)
            await asyncio.sleep(0.1)
        await asyncio.sleep(2)

    assert taken[0] == (began, [b"0"])
    assert 2 <= len(taken) <= 4
    assert [value for _, values in taken for value in values] == [b"%d" % number for number in range(8)]
    assert all(later - earlier >= 0.5 for (earlier, _), (later, _) in pairwise(taken))


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
