"""How far a partition is behind, and whether records that should come do not."""

import asyncio
import time

import pytest

from consumer.kafka.partition import STALL_SECONDS
from tests.unit.partition_in_memory import PLACE, Subject, assigned, lag_of, seconds_ago

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def subject() -> Subject:
    return await assigned()


async def test_lag_counts_and_ages_from_the_first_record_that_is_not_applied(subject: Subject) -> None:
    subject.publish(b"0", timestamp=seconds_ago(300))
    subject.publish(b"1", timestamp=seconds_ago(200))
    subject.publish(b"2", timestamp=seconds_ago(100))
    subject.partition.seek(0)
    await subject.partition.bounds()
    await subject.poll()

    buffered = subject.partition.lag()
    await subject.taken(limit=2)
    in_hand = subject.partition.lag()
    subject.partition.applied(2)
    applied = subject.partition.lag()
    await subject.taken()
    subject.partition.applied(3)

    assert buffered == lag_of(3, 300)
    assert in_hand == lag_of(3, 300)
    assert applied == lag_of(1, 100)
    assert subject.partition.lag() == lag_of(0)


async def test_lag_knows_of_records_that_were_fetched_after_the_brokers_were_asked(subject: Subject) -> None:
    subject.publish(b"0", b"1")
    subject.partition.seek(0)

    await subject.poll()

    assert subject.partition.log_end == 0
    assert (lag := subject.partition.lag()) is not None
    assert lag.records == 2


async def test_lag_is_never_negative(subject: Subject) -> None:
    subject.publish(b"0", timestamp=seconds_ago(-100))
    subject.partition.seek(0)
    await subject.poll()
    ahead = subject.partition.lag()

    subject.partition.applied(5)
    subject.partition.update_log_end(3, None)

    assert ahead == lag_of(1)
    assert (lag := subject.partition.lag()) is not None
    assert lag.records == 0


async def test_commit_markers_at_the_end_of_the_log_are_no_lag(subject: Subject) -> None:
    subject.publish(b"0")
    subject.cluster.append_marker(PLACE)
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken()
    subject.partition.update_log_end(2, await subject.client.position(PLACE))
    in_hand = subject.partition.lag()

    subject.partition.applied(1)

    assert in_hand == lag_of(2, time.time())
    assert subject.partition.lag() == lag_of(0)


async def test_a_position_that_is_unknown_or_behind_changes_nothing(subject: Subject) -> None:
    subject.publish(b"0", b"1", timestamp=seconds_ago(0))
    subject.partition.seek(0)
    await subject.poll()
    await subject.taken()
    subject.partition.applied(2)

    subject.partition.update_log_end(5, None)
    unknown = subject.partition.lag()
    subject.partition.update_log_end(5, 1)

    assert unknown == subject.partition.lag() == lag_of(3)


async def test_a_position_past_buffered_records_is_not_trusted(subject: Subject) -> None:
    subject.publish(b"0", b"1")
    subject.partition.seek(0)
    await subject.poll(limit=1)

    subject.partition.update_log_end(2, 17)

    assert (lag := subject.partition.lag()) is not None
    assert lag.records == 2


async def behind(subject: Subject) -> None:
    """Records are there that do not come."""
    subject.partition.seek(0)
    subject.partition.update_log_end(2, None)


async def test_a_partition_that_is_behind_and_gets_nothing_stalls_after_a_while(subject: Subject) -> None:
    await behind(subject)
    await asyncio.sleep(STALL_SECONDS)
    in_time = subject.partition.stalled

    await asyncio.sleep(0.1)

    assert not in_time
    assert subject.partition.stalled


async def test_a_partition_stalls_only_where_records_are_missing(subject: Subject) -> None:
    await behind(subject)
    await asyncio.sleep(2 * STALL_SECONDS)

    subject.partition.update_log_end(2, 2)

    assert not subject.partition.stalled


async def test_a_partition_that_wants_no_records_does_not_stall(subject: Subject) -> None:
    await behind(subject)
    await asyncio.sleep(2 * STALL_SECONDS)

    subject.partition.pause()

    assert not subject.partition.stalled


async def test_a_partition_with_records_in_hand_or_in_its_buffer_does_not_stall(subject: Subject) -> None:
    subject.publish(b"0", b"1")
    await behind(subject)
    subject.partition.update_log_end(17, None)
    await subject.poll()
    await asyncio.sleep(2 * STALL_SECONDS)
    buffered = subject.partition.stalled
    await subject.taken()
    await asyncio.sleep(2 * STALL_SECONDS)
    in_hand = subject.partition.stalled

    subject.partition.applied(2)
    after_a_long_batch = subject.partition.stalled
    await asyncio.sleep(2 * STALL_SECONDS)

    assert (buffered, in_hand, after_a_long_batch) == (False, False, False)
    assert subject.partition.stalled


@pytest.mark.parametrize("again", ["seek", "refetch"])
async def test_a_new_fetch_gets_its_time(subject: Subject, again: str) -> None:
    await behind(subject)
    await asyncio.sleep(2 * STALL_SECONDS)

    if again == "seek":
        subject.partition.seek(0)
    else:
        subject.partition.refetch()

    assert not subject.partition.stalled
