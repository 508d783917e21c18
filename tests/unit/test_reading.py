"""A partition read up to its end, over a client in memory."""

import asyncio

import pytest

from consumer.errors import UnavailableError
from consumer.kafka.reading import records_before
from tests.unit.partition_in_memory import PLACE, Subject, assigned

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def subject() -> Subject:
    subject = await assigned()
    subject.partition.seek(0)
    return subject


async def read(subject: Subject, end: int) -> list[tuple[list[bytes | None], int]]:
    """Values, and the position after them, where there are any."""
    return [
        ([record.value for record in records], position)
        async for records, position in records_before(subject.client, PLACE, end)
        if records
    ]


async def test_what_lies_before_the_end_is_read_and_nothing_after_it(subject: Subject) -> None:
    subject.publish(b"0", b"1", b"2")

    assert await read(subject, 2) == [([b"0", b"1"], 2)]


async def test_a_commit_marker_at_the_end_is_passed(subject: Subject) -> None:
    subject.publish(b"0")
    subject.cluster.append_marker(PLACE)

    assert [values for values, _ in await read(subject, 2)] == [[b"0"]]


async def test_brokers_that_fall_silent_are_an_outage(subject: Subject) -> None:
    subject.publish(b"0")
    subject.cluster.fail()

    with pytest.raises(UnavailableError, match=r"events\[0\] from offset 0 on"):
        await asyncio.wait_for(read(subject, 1), 600)


async def test_brokers_that_come_back_are_read_on(subject: Subject) -> None:
    subject.publish(b"0")
    subject.cluster.fail()
    reading = asyncio.create_task(read(subject, 1))

    await asyncio.sleep(30)
    subject.cluster.heal()

    assert await reading == [([b"0"], 1)]
