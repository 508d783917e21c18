"""A revoked partition gives out nothing, keeps nobody waiting and never comes back."""

import asyncio
from functools import partial

import pytest

from tests.unit.partition_in_memory import LONG, OTHER, Subject, assigned

pytestmark = pytest.mark.virtual_time


@pytest.fixture
async def subject() -> Subject:
    return await assigned()


async def test_nothing_is_taken_after_a_revocation_whatever_is_buffered(subject: Subject) -> None:
    subject.publish(b"a")
    subject.partition.seek(0)
    await subject.poll()

    subject.partition.revoke()

    assert subject.partition.is_revoked()
    assert not subject.partition.wants_records
    assert list(await subject.partition.take(10, LONG)) == []


async def test_a_revocation_is_the_last_state(subject: Subject) -> None:
    subject.publish(b"a")
    subject.partition.seek(0)
    await subject.poll()
    subject.partition.revoke()

    changes = (partial(subject.partition.seek, 0), subject.partition.pause, partial(subject.partition.fail, "why"))
    for change in changes:
        change()

        assert subject.partition.is_revoked()
        assert not subject.partition.wants_records
        assert list(await subject.partition.take(10, LONG)) == []


async def test_a_revoked_partition_leaves_the_client_alone(subject: Subject) -> None:
    subject.partition.seek(0)
    subject.partition.revoke()
    await subject.client.assign(OTHER)

    subject.partition.seek(0)
    subject.partition.refetch()

    assert subject.client.assignment() == {OTHER}


async def test_a_revocation_wakes_everybody_who_waits(subject: Subject) -> None:
    subject.partition.seek(0)
    take = asyncio.create_task(subject.partition.take(10, LONG))
    wait = asyncio.create_task(subject.partition.revoked_within(LONG))
    await asyncio.sleep(1)

    subject.partition.revoke()

    assert list(await take) == []
    assert await wait
    assert asyncio.get_running_loop().time() < LONG


async def test_revoked_within_waits_its_time(subject: Subject) -> None:
    started = asyncio.get_running_loop().time()

    assert not await subject.partition.revoked_within(3.0)

    assert asyncio.get_running_loop().time() == started + 3.0
