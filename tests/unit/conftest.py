"""Unit tests of what waits run on virtual time: hours pass in milliseconds, and a deadlock is an error."""

import asyncio
from collections.abc import Callable, Mapping

import pytest

from tests.simulation.loop import VirtualLoop

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, LoopFactory]:
    if item.get_closest_marker("virtual_time"):
        return {"virtual": VirtualLoop}
    return {"real": asyncio.new_event_loop}
