"""A relay of transitions whose database is away."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from consumer.errors import UnavailableError
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.outbox import Backlog, OutboxBatch, OutboxRelay
from consumer.settings import OutboxSettings


class AwayOutbox:
    """The outbox of a database that does not answer. `relay` is told to stop at the third turn."""

    relay: OutboxRelay

    def __init__(self) -> None:
        self.turns = 0

    @asynccontextmanager
    async def turn(self, _: int, __: float) -> AsyncIterator[OutboxBatch | None]:
        self.turns += 1
        if self.turns == 3:
            self.relay.stop()
        raise UnavailableError("away")
        yield

    async def backlog(self) -> Backlog:
        raise UnavailableError("away")


async def test_a_relay_that_stops_in_an_outage_does_not_say_that_it_is_over() -> None:
    outbox, health = AwayOutbox(), Health()
    settings = OutboxSettings(outage_backoff_max_seconds=0.01)

    async def publish(_: object) -> None:
        raise AssertionError("there is nothing to publish")

    outbox.relay = OutboxRelay(outbox, publish, settings=settings, metrics=Metrics(), health=health)
    with capture_logs() as logged:
        await outbox.relay.run()

    said = [line["event"] for line in logged]
    assert "outage: transitions are not published" in said
    assert "outage over" not in said
