"""Gauges of what a database holds: counting reads what it counts, so it gets a small share of the time."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog

from consumer.errors import UnavailableError

log = structlog.get_logger(__name__)
SHARE = 0.02


async def count_seldom(count: Callable[[], Awaitable[None]], seconds: float, stopping: asyncio.Event) -> None:
    """Calls `count` every so many seconds until `stopping`; less often, where it would take too much of the time.

    A count that raises `UnavailableError` is left out. Any other error sets `stopping`, which ends the work beside it:
    an alert on the gauge would be silent from then on.
    """
    clock = asyncio.get_running_loop().time
    try:
        while not stopping.is_set():
            started = clock()
            try:
                await count()
            except UnavailableError as error:
                log.debug("not counted", error=str(error))
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), max(seconds, (clock() - started) / SHARE))
    finally:
        stopping.set()
