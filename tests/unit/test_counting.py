"""Counting beside the work: what it cannot count for now is left out, any other error ends the work."""

import asyncio

import pytest

from consumer.errors import ConfigurationError, UnavailableError
from consumer.observability.counting import SHARE, count_seldom

pytestmark = pytest.mark.virtual_time


async def test_a_count_that_an_outage_prevents_is_left_out() -> None:
    stopping, counts = asyncio.Event(), 0

    async def count() -> None:
        nonlocal counts
        counts += 1
        if counts == 1:
            raise UnavailableError("away")
        stopping.set()

    await count_seldom(count, 5, stopping)

    assert counts == 2


async def test_a_count_that_takes_long_takes_its_share_of_the_time() -> None:
    stopping, started = asyncio.Event(), list[float]()
    clock = asyncio.get_running_loop().time

    async def count() -> None:
        started.append(clock())
        await asyncio.sleep(10)
        if len(started) == 2:
            stopping.set()

    await count_seldom(count, 5, stopping)

    assert started[1] - started[0] == pytest.approx(10 + 10 / SHARE)


async def test_a_count_that_fails_for_good_ends_the_work_beside_it() -> None:
    stopping = asyncio.Event()

    async def count() -> None:
        raise ConfigurationError("another password is needed by now")

    counting = asyncio.create_task(count_seldom(count, 5, stopping))
    await asyncio.wait_for(stopping.wait(), 1)

    with pytest.raises(ConfigurationError):
        await counting
