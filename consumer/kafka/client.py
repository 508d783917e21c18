"""The life of a client of Kafka: start, stop, and what it logs on the way."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from consumer.errors import UnavailableError
from consumer.kafka.connection import asks_for_tokens
from consumer.kafka.diagnosis import diagnosis
from consumer.kafka.errors import classified
from consumer.settings import KafkaSettings

# Where nobody has configured logging, as in a command, the error that is raised says it all.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

STOP_SECONDS = 5.0
MOMENT_SECONDS = 10.0
"""A group may be without a coordinator for so long before that is worth a line in the log."""


class Client(Protocol):
    """What connects: aiokafka's consumer, producer and admin client."""

    async def start(self) -> None: ...


C = TypeVar("C", bound=Client)


class OnlyIfItLasts(logging.Filter):
    """Holds back that a group has no coordinator yet, which the client logs as an error, until that has lasted.

    Brokers make the topic of the groups' offsets with the first group, so each first start has such a moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since = self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(isinstance(part, GroupCoordinatorNotAvailableError) for part in record.args or ()):
            return True
        now = self._clock()
        if now - self._last > MOMENT_SECONDS:
            self._since = now
        self._last = now
        return now - self._since >= MOMENT_SECONDS


logging.getLogger("aiokafka.consumer.group_coordinator").addFilter(OnlyIfItLasts())


async def stop(client: Any) -> None:
    """Stops a consumer or a producer, within `STOP_SECONDS`; what it raises then is of no use to anybody."""
    with suppress(TimeoutError, KafkaError):
        await asyncio.wait_for(client.stop(), STOP_SECONDS)


@asynccontextmanager
async def running(client: C, settings: KafkaSettings, end: Callable[[C], Awaitable[object]] = stop) -> AsyncIterator[C]:
    """A client that runs for as long as the block lasts. Raises as `started`."""
    await started(client, settings, end)
    try:
        yield client
    finally:
        await end(client)


async def started(client: C, settings: KafkaSettings, end: Callable[[C], Awaitable[object]] = stop) -> C:
    """The client, started; one that fails is ended. Raises as `start`."""
    try:
        await start(client, settings)
    except BaseException:
        await end(client)
        raise
    return client


async def start(client: Client, settings: KafkaSettings) -> None:
    """Starts a client of Kafka. Where that fails, the error says what a broker said and which variable to look at."""
    # The client overlooks that a token is refused, and starts without brokers.
    if asks_for_tokens(settings) and (why := await diagnosis(settings)):
        raise UnavailableError(why)
    try:
        with classified():
            await client.start()
    except UnavailableError as error:
        if (why := await diagnosis(settings)) is None:
            raise
        raise UnavailableError(why) from error


def open_consumer(**arguments: Any) -> AIOKafkaConsumer:
    """aiokafka's consumer, not started, whose look-ups of offsets survive a connection that is half open."""
    client = AIOKafkaConsumer(**arguments)
    # A look-up may take as long as one of its requests, and its time starts earlier. So it would give up before the
    # request does, which alone closes a connection that answers no more: that one would be used for ever.
    client._request_timeout_ms *= 2  # noqa: SLF001 - there is no public way
    return client
