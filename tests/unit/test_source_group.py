"""A source in its group: what it commits, how it gives partitions up, how it ends."""

import asyncio
import time

import pytest
from aiokafka.errors import (
    CommitFailedError,
    GroupAuthorizationFailedError,
    IllegalStateError,
    KafkaTimeoutError,
)

from consumer.errors import StalledError, UnavailableError
from consumer.kafka.client import STOP_SECONDS
from consumer.kafka.partition import STALL_SECONDS, AssignedPartition
from consumer.kafka.source import LAG_SECONDS, POLL_SECONDS
from tests.memory_kafka.consumer import MemoryConsumer
from tests.unit.source_in_memory import KAFKA, LONG, PLACES, WORKER, Group, apply_all, grouped, now, slow

pytestmark = pytest.mark.virtual_time


async def test_a_revocation_waits_for_the_workers_and_commits_what_they_have_applied() -> None:
    async with grouped(PLACES[0], worker=slow(20)) as group:
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
    async with grouped(PLACES[0], worker=slow(10)) as group:
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


async def test_stop_does_not_wait_for_a_group_that_no_broker_coordinates() -> None:
    group = Group(apply_all, MemoryConsumer, WORKER)
    await asyncio.sleep(LONG)
    started = now()

    await group.stop()

    assert now() < started + STOP_SECONDS
    assert group.client.is_stopped


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
    def probes() -> tuple[bool, float | None, list[str]]:
        return group.health.joined, group.sample("conversation_assigned_partitions"), group.health.not_ready()

    async with grouped(PLACES[0], PLACES[1]) as group:
        await asyncio.sleep(1)
        joined = probes()

        await group.client.revoke()
        revoked = probes()

    assert joined == (True, 2, [])
    assert time.monotonic() - group.health.polled_at < LONG
    assert revoked == (False, 0, ["has not joined the consumer group"])
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
