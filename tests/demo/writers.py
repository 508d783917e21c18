"""Writers beside the consumer: programs that use the service on the same conversations, and one that holds a lock."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import asyncpg

from consumer.errors import ConcurrencyError
from consumer.lifecycle.model import Event
from consumer.service.service import ConversationService
from tests.traffic import Traffic

HOLD_SECONDS = 0.7
PAUSE_SECONDS = 1.0


async def concurrent_writer(
    name: str, apply: Callable[[Event], Awaitable[None]], traffic: Traffic, stop: asyncio.Event
) -> None:
    """Applies one event after the other to the hot conversations, as an API or a back office would."""
    random = Random(name)
    while not stop.is_set():
        await apply(traffic.event(random.choice(traffic.hot), name))


async def apply_until_written(service: ConversationService, event: Event) -> None:
    """A caller that comes back when its retry budget was used up: the same event again is safe."""
    while True:
        try:
            await service.apply([event])
        except ConcurrencyError:
            continue
        return


async def lock_holder(url: str, conversation_ids: Sequence[str], stop: asyncio.Event) -> None:
    """Somebody with a long transaction on one of these rows, again and again."""
    random = Random("lock holder")
    connection = await asyncpg.connect(url)
    try:
        while not stop.is_set():
            async with connection.transaction():
                key = random.choice(conversation_ids)
                await connection.execute("SELECT 1 FROM conversation WHERE conversation_id = $1 FOR UPDATE", key)
                await asyncio.sleep(HOLD_SECONDS)
            await asyncio.sleep(PAUSE_SECONDS)
    finally:
        await connection.close()
