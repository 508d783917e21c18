"""What `KafkaSource` and `AssignedPartition` rely on: the consumer in memory does as aiokafka's does."""

import asyncio

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import (
    ConsumerStoppedError,
    IllegalStateError,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from tests.contract.kafka_clients import SECONDS, SOON, Subject, joined_at, places, publish, read, values

AT_ONCE = 1


async def test_a_first_join_revokes_nothing_and_assigns_all(clients: Subject) -> None:
    await clients.join()
    await clients.rebalances.until(2)

    assert clients.rebalances.seen == [("revoked", set()), ("assigned", {0, 1})]
    assert clients.consumer.assignment() == set(places(clients))
    assert clients.consumer.partitions_for_topic(clients.topic) == {0, 1}


async def test_a_rebalance_revokes_all_and_assigns_what_is_left_without_a_position(clients: Subject) -> None:
    await publish(clients, 0, b"a")
    await publish(clients, 1, b"a")
    await joined_at(clients, 0)
    await read(clients, 2)

    rebalancing = asyncio.create_task(clients.rebalance())
    await clients.rebalances.until(4)
    await rebalancing

    (left,) = clients.consumer.assignment()
    assert clients.rebalances.seen[2:] == [("revoked", {0, 1}), ("assigned", {left.partition})]
    (lost,) = {*places(clients)} - {left}
    for call, arguments in (("seek", (lost, 0)), ("pause", (lost,)), ("resume", (lost,))):
        with pytest.raises(IllegalStateError):
            getattr(clients.consumer, call)(*arguments)
    for waiting in (clients.consumer.position(lost), clients.consumer.commit({lost: 1})):
        with pytest.raises(IllegalStateError):
            await waiting
    with pytest.raises(NoOffsetForPartitionError):
        await read(clients, 1, left)
    clients.consumer.seek(left, 0)
    assert values(await read(clients, 1, left)) == [b"a"]


async def test_what_a_listener_raises_changes_nothing(clients: Subject) -> None:
    clients.rebalances.error = ValueError("oops")

    await clients.join()

    assert clients.consumer.assignment() == set(places(clients))


async def test_records_come_in_order_and_byte_for_byte(clients: Subject) -> None:
    headers = [("a", b"\x00\xff"), ("a", b""), ("ü", b"1")]
    place, _ = await joined_at(clients, 0)
    sent = await clients.producer.send(clients.topic, b"\xff\x00", b"key", partition=0, headers=headers)
    await sent
    await publish(clients, 0, b"next")

    first, second = await read(clients, 2, place)

    assert (first.topic, first.partition, first.offset) == (clients.topic, 0, 0)
    assert (first.key, first.value, list(first.headers)) == (b"key", b"\xff\x00", headers)
    assert (second.key, second.value, second.offset) == (None, b"next", 1)


async def test_a_partition_without_position_and_commit_raises_even_while_it_is_paused(clients: Subject) -> None:
    await clients.join()
    place, _ = places(clients)
    clients.consumer.pause(place)

    with pytest.raises(NoOffsetForPartitionError):
        await clients.consumer.getmany(place, timeout_ms=SOON)


async def test_getmany_returns_nothing_when_its_time_is_over(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)

    assert await clients.consumer.getmany(place, timeout_ms=50) == {}
    assert await clients.consumer.getmany(TopicPartition("", 0), timeout_ms=50) == {}


async def test_records_wake_a_getmany_that_waits(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    waiting = asyncio.create_task(clients.consumer.getmany(place, timeout_ms=1000 * SECONDS))
    await asyncio.sleep(0)

    await publish(clients, 0, b"late")

    assert values((await asyncio.wait_for(waiting, SECONDS))[place]) == [b"late"]


async def test_getmany_returns_no_more_than_its_limit_and_goes_on_from_there(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, *(b"%d" % number for number in range(7)))

    found: list[bytes | None] = []
    while len(found) < 7:
        fetched = await clients.consumer.getmany(place, timeout_ms=SOON, max_records=2)
        assert len(fetched.get(place, [])) <= 2
        found += values(fetched.get(place, []))
        assert await clients.consumer.position(place) == len(found)

    assert found == [b"%d" % number for number in range(7)]


async def test_getmany_without_partitions_returns_those_of_all(clients: Subject) -> None:
    await joined_at(clients, 0)
    await publish(clients, 0, b"a")
    await publish(clients, 1, b"b")

    assert sorted(values(await read(clients, 2)), key=str) == [b"a", b"b"]


async def test_what_is_fetched_of_other_partitions_stays_for_them(clients: Subject) -> None:
    first, second = await joined_at(clients, 0)
    await publish(clients, 0, b"a")
    await publish(clients, 1, b"b")

    assert values(await read(clients, 1, first)) == [b"a"]
    assert values(await read(clients, 1, second)) == [b"b"]


async def test_what_was_fetched_before_a_seek_is_not_returned_after_it(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, *(b"%d" % number for number in range(6)))
    await read(clients, 3, place)

    clients.consumer.seek(place, 1)

    assert values(await read(clients, 5, place)) == [b"1", b"2", b"3", b"4", b"5"]
    clients.consumer.seek(place, 4)
    assert await clients.consumer.position(place) == 4
    assert values(await read(clients, 2, place)) == [b"4", b"5"]


async def test_a_paused_partition_returns_nothing_and_loses_nothing(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, *(b"%d" % number for number in range(4)))
    await read(clients, 2, place)

    clients.consumer.pause(place)
    while_paused = await clients.consumer.getmany(place, timeout_ms=50)
    clients.consumer.resume(place)

    assert while_paused == {}
    assert values(await read(clients, 2, place)) == [b"2", b"3"]


async def test_what_is_fetched_before_a_pause_is_there_after_it(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, *(b"%d" % number for number in range(4)))
    await read(clients, 2, place)

    clients.consumer.pause(place)
    clients.consumer.resume(place)

    assert values(await read(clients, 2, place)) == [b"2", b"3"]


async def test_the_bounds_follow_appends_and_retention(clients: Subject) -> None:
    await clients.join()
    place, other = places(clients)
    await publish(clients, 0, b"a", b"b", b"c")
    await clients.delete_before(0, 2)

    assert await clients.consumer.beginning_offsets([place, other]) == {place: 2, other: 0}
    assert await clients.consumer.end_offsets([place, other]) == {place: 3, other: 0}
    assert await clients.consumer.end_offsets([]) == {}


@pytest.mark.parametrize("offset", [0, 17])
async def test_an_offset_outside_of_the_log_is_named_again_and_again_until_a_seek(
    clients: Subject, offset: int
) -> None:
    await publish(clients, 0, b"a", b"b", b"c")
    await publish(clients, 1, b"other")
    await clients.delete_before(0, 2)
    place, other = await joined_at(clients, 0)
    clients.consumer.seek(place, offset)

    for _ in range(2):
        with pytest.raises(OffsetOutOfRangeError) as raised:
            await read(clients, 1, place)
        assert raised.value.args[0] == {place: offset}

    assert values(await read(clients, 1, other)) == [b"other"]
    clients.consumer.seek(place, 2)
    assert values(await read(clients, 1, place)) == [b"c"]


async def test_a_record_that_cannot_be_read_is_raised_again_and_again_until_a_seek(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await clients.publish_unreadable(0)
    await publish(clients, 0, b"after")

    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            await read(clients, 1, place)

    assert await clients.consumer.position(place) == 0
    clients.consumer.seek(place, 1)
    assert values(await read(clients, 1, place)) == [b"after"]


async def test_records_before_one_that_cannot_be_read_come_where_the_limit_ends_before_it(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, b"before")
    await clients.publish_unreadable(0)

    assert values(await read(clients, 1, place)) == [b"before"]
    with pytest.raises(UnicodeDecodeError):
        await read(clients, 1, place)


async def test_commit_markers_move_the_position_and_are_no_records(clients: Subject) -> None:
    place, _ = await joined_at(clients, 0)
    await clients.publish_aborted(0)

    async with asyncio.timeout(SECONDS):
        while await clients.consumer.position(place) < 2:
            assert await clients.consumer.getmany(place, timeout_ms=50) == {}

    assert await clients.consumer.end_offsets([place]) == {place: 2}


async def test_a_commit_is_of_the_group(clients: Subject) -> None:
    await clients.join()
    place, _ = places(clients)

    await clients.consumer.commit({place: 5})

    assert await clients.committed(0) == 5
    assert await clients.committed(1) is None


async def test_a_stopped_consumer_reads_nothing_and_stops_again(clients: Subject) -> None:
    await clients.join()

    await clients.consumer.stop()
    await clients.consumer.stop()

    with pytest.raises(ConsumerStoppedError):
        await clients.consumer.getmany(timeout_ms=AT_ONCE)
    assert clients.rebalances.seen[-1][0] == "assigned"
