"""The demo's own parts: what it runs beside the writers, and what it counts of the naive writer."""

import asyncio

import pytest

from tests.demo.demo import beside
from tests.demo.naive import NaiveWriter
from tests.traffic import SHORT_POLICY


async def test_what_goes_on_beside_a_block_ends_with_it_also_where_it_is_interrupted() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def interrupted() -> None:
        async with beside(endless()):
            await begun.wait()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await interrupted()

    assert ended.is_set()


class Table:
    """The naive writer's pool: how many updates its table has."""

    def __init__(self, updates: int | None) -> None:
        self.updates = updates

    async def fetchval(self, _: str) -> int | None:
        return self.updates


@pytest.mark.parametrize(("updates", "lost"), [(None, 2), (0, 2), (1, 1), (2, 0), (5, 0)])
async def test_a_write_in_flight_is_no_update_lost(updates: int | None, lost: int) -> None:
    naive = NaiveWriter(Table(updates), SHORT_POLICY.policy)
    naive.acknowledged.update(["c-1", "c-2"])

    assert await naive.lost_updates() == lost
