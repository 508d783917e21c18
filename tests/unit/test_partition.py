"""One assigned partition over a client in memory: what protects a record between the fetch and the database."""

import asyncio

import pytest

from consumer.errors import PartitionStoppedError, UnavailableError
from consumer.records import Record
from tests.unit.partition_in_memory import LONG, PLACE, Subject, assigned, seconds_ago

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def subject() -> Subject:
    return await assigned()


async def test_nothing_is_fetched_before_the_first_seek(subject: Subject) -> None:
    subject.publish(b"a")
    await asyncio.sleep(1)

    await subject.poll()

    assert not subject.partition.wants_records
    assert subject.partition.next_offset is None
    assert subject.partition.lag() is None
    assert await subject.taken() == []


async def test_a_take_before_the_first_seek_asks_for_no_records(subject: Subject) -> None:
    await subject.taken()

    assert not subject.partition.wants_records


async def test_the_bounds_are_the_logs_and_its_end_is_kept(subject: Subject) -> None:
    subject.publish(b"a", b"b", b"c")
    subject.cluster.delete_before(PLACE, 1)

    assert await subject.partition.bounds() == (1, 3)
    assert subject.partition.log_end == 3
    assert await subject.partition.cluster_id() == "cluster"


async def test_brokers_that_do_not_answer_are_an_outage(subject: Subject) -> None:
    subject.cluster.fail()

    with pytest.raises(UnavailableError):
        await subject.partition.bounds()


async def test_a_record_is_taken_as_it_lies_in_the_log(subject: Subject) -> None:
    headers = [("a", b"\x00\xff"), ("a", b"")]
    subject.cluster.append(PLACE, b"\xff\x00", b"key", headers, timestamp=17)
    subject.cluster.append(PLACE, None, timestamp=18)
    subject.partition.seek(0)
    await subject.poll()

    assert list(await subject.partition.take(10, LONG)) == [
        Record("events", 0, 0, 17, b"key", b"\xff\x00", tuple(headers)),
        Record("events", 0, 1, 18, None, None, ()),
    ]


async def test_records_are_taken_in_the_order_of_their_fetches(subject: Subject) -> None:
    subject.publish(b"0", b"1", b"2", b"3", b"4")
    subject.partition.seek(0)

    await subject.poll(limit=2)
    await subject.poll(limit=2)
    first = await subject.taken(limit=3)
    await subject.poll()

    assert first == [b"0", b"1", b"2"]
    assert await subject.taken() == [b"3", b"4"]
    assert await subject.taken() == []


async def test_a_seek_fetches_from_its_offset_on(subject: Subject) -> None:
    subject.publish(b"0", b"1", b"2")

    subject.partition.seek(1)
    await subject.poll()

    assert subject.partition.wants_records
    assert subject.partition.next_offset == 1
    assert await subject.taken() == [b"1", b"2"]


async def test_after_a_rewind_nothing_newer_comes_before_the_records_that_are_missing(subject: Subject) -> None:
    subject.publish(*(b"%d" % number for number in range(6)))
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken(limit=4)

    subject.partition.seek(2)

    assert await subject.taken() == []
    await subject.poll()
    assert await subject.taken() == [b"2", b"3", b"4", b"5"]


async def test_a_seek_makes_room_by_what_it_drops() -> None:
    subject = await assigned(max_buffered=100, max_buffered_bytes=10)
    subject.publish(b"12345", b"67890")
    subject.partition.seek(0)
    await subject.poll()
    full = not subject.partition.wants_records

    subject.partition.seek(0)

    assert full
    assert subject.partition.wants_records
    await subject.poll(limit=1)
    assert subject.partition.wants_records
    await subject.poll(limit=1)
    assert not subject.partition.wants_records


async def test_a_seek_forgets_the_age_of_what_was_in_hand(subject: Subject) -> None:
    subject.publish(b"old", b"old", timestamp=seconds_ago(50))
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken(limit=1)

    subject.partition.seek(2)

    assert subject.age() == 0


async def test_a_seek_ends_a_failure_and_a_pause(subject: Subject) -> None:
    subject.partition.seek(0)
    subject.partition.fail("cannot be read")
    subject.partition.seek(0)
    after_failure = subject.partition.wants_records

    subject.partition.pause()
    subject.partition.seek(0)

    assert after_failure
    assert subject.partition.wants_records


async def test_a_refetch_brings_what_a_failed_poll_dropped_after_the_buffered_records(subject: Subject) -> None:
    subject.publish(*(b"%d" % number for number in range(6)))
    subject.partition.seek(0)
    await subject.poll(limit=2)
    await subject.client.getmany(PLACE, timeout_ms=100, max_records=2)

    subject.partition.refetch()
    await subject.poll()

    assert await subject.taken() == [b"%d" % number for number in range(6)]


async def test_a_refetch_before_the_first_seek_fetches_nothing(subject: Subject) -> None:
    subject.publish(b"a")

    subject.partition.refetch()

    assert not subject.partition.wants_records
    assert await subject.client.getmany(PLACE, timeout_ms=100) == {}


async def test_a_refetch_goes_on_from_a_seek_that_has_brought_nothing_yet(subject: Subject) -> None:
    subject.publish(b"0", b"1", b"2")
    subject.partition.seek(1)
    await subject.client.getmany(PLACE, timeout_ms=100)

    subject.partition.refetch()
    await subject.poll()

    assert subject.partition.next_offset == 1
    assert await subject.taken() == [b"1", b"2"]


async def test_take_returns_no_more_than_its_limit_and_does_not_wait_for_it(subject: Subject) -> None:
    subject.publish(b"0", b"1", b"2")
    subject.partition.seek(0)
    await subject.poll()
    started = asyncio.get_running_loop().time()

    taken = [list(await subject.partition.take(2, LONG)) for _ in range(2)]

    assert [len(records) for records in taken] == [2, 1]
    assert asyncio.get_running_loop().time() == started


async def test_take_waits_its_time_and_returns_nothing(subject: Subject) -> None:
    subject.partition.seek(0)
    started = asyncio.get_running_loop().time()

    assert list(await subject.partition.take(10, 7.0)) == []

    assert asyncio.get_running_loop().time() == started + 7.0


async def test_records_wake_a_take_that_waits(subject: Subject) -> None:
    subject.partition.seek(0)
    waiting = asyncio.create_task(subject.partition.take(10, LONG))
    await asyncio.sleep(1)
    subject.publish(b"a")

    await subject.poll()

    (record,) = await waiting
    assert record.value == b"a"
    assert asyncio.get_running_loop().time() < LONG


async def test_a_take_waits_again_after_it_was_woken_once(subject: Subject) -> None:
    subject.publish(b"a")
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken()
    started = asyncio.get_running_loop().time()

    assert list(await subject.partition.take(10, 5.0)) == []

    assert asyncio.get_running_loop().time() == started + 5.0


async def test_a_pause_keeps_what_is_fetched_and_lasts_until_the_next_take(subject: Subject) -> None:
    subject.publish(b"a", b"b")
    subject.partition.seek(0)
    await subject.poll()

    subject.partition.pause()
    paused = not subject.partition.wants_records
    taken = await subject.taken()

    assert paused
    assert taken == [b"a", b"b"]
    assert subject.partition.wants_records


async def test_a_failure_comes_once_the_buffer_is_empty(subject: Subject) -> None:
    subject.publish(b"a", b"b")
    subject.partition.seek(0)
    await subject.poll()

    subject.partition.fail("the next record cannot be read")

    assert not subject.partition.wants_records
    assert await subject.taken(limit=1) == [b"a"]
    assert await subject.taken(limit=1) == [b"b"]
    with pytest.raises(PartitionStoppedError, match=r"^the next record cannot be read$"):
        await subject.partition.take(1, LONG)


async def test_a_failure_wakes_a_take_that_waits(subject: Subject) -> None:
    subject.partition.seek(0)
    waiting = asyncio.create_task(subject.partition.take(1, LONG))
    await asyncio.sleep(1)

    subject.partition.fail("no longer in the log")

    with pytest.raises(PartitionStoppedError):
        await waiting
    assert asyncio.get_running_loop().time() < LONG


async def test_a_pause_hides_no_failure(subject: Subject) -> None:
    subject.partition.seek(0)
    subject.partition.fail("cannot be read")

    subject.partition.pause()

    with pytest.raises(PartitionStoppedError):
        await subject.partition.take(1, LONG)


async def test_the_buffer_has_room_below_its_count() -> None:
    subject = await assigned(max_buffered=3)
    subject.publish(b"0", b"1", b"2", b"3")
    subject.partition.seek(0)

    await subject.poll(limit=2)
    below = subject.partition.wants_records
    await subject.poll(limit=1)
    full = not subject.partition.wants_records
    await subject.taken(limit=1)

    assert below
    assert full
    assert subject.partition.wants_records


async def test_the_buffer_has_room_below_its_bytes_of_keys_and_values() -> None:
    subject = await assigned(max_buffered_bytes=10)
    subject.publish(b"1234", key=b"k")
    subject.publish(b"123", key=b"k")
    subject.publish(b"", key=b"k")
    subject.partition.seek(0)

    await subject.poll(limit=2)
    below = subject.partition.wants_records
    await subject.poll(limit=1)
    full = not subject.partition.wants_records
    await subject.taken(limit=2)
    await subject.taken(limit=1)

    assert below
    assert full
    assert subject.partition.wants_records


async def test_headers_fill_the_buffer_as_keys_and_values_do() -> None:
    subject = await assigned(max_buffered_bytes=10)
    subject.publish(b"", headers=[("name", b"value")])
    subject.publish(b"", headers=[("n", b"")])
    subject.partition.seek(0)

    await subject.poll(limit=1)
    below = subject.partition.wants_records
    await subject.poll(limit=1)
    full = not subject.partition.wants_records
    await subject.taken()

    assert below
    assert full
    assert subject.partition.wants_records


async def test_only_what_is_taken_makes_room() -> None:
    subject = await assigned(max_buffered_bytes=10)
    subject.publish(b"1", b"12345678", b"123")
    subject.partition.seek(0)
    await subject.poll()

    await subject.taken(limit=1)
    full = not subject.partition.wants_records
    await subject.taken(limit=1)

    assert full
    assert subject.partition.wants_records


async def test_what_is_applied_may_be_committed(subject: Subject) -> None:
    subject.publish(b"0", b"1")
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken()

    in_hand = subject.partition.next_offset
    subject.partition.applied(2)

    assert in_hand == 0
    assert subject.partition.next_offset == 2
