"""Waiting for what other processes do."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

POLL_SECONDS = 0.1
Condition = Callable[[], Awaitable[bool]]


async def within(seconds: float, condition: Condition) -> bool:
    """Whether the condition came true in time."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while not await condition():  # noqa: ASYNC110 - another process makes it true
                await asyncio.sleep(POLL_SECONDS)
            return True
    return False
