"""Clients of Kafka, in memory and real."""

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.contract.kafka_clients import Subject, memory_clients, real_clients
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.services import Services


@pytest.fixture(scope="module")
def broker() -> Iterator[KafkaBroker]:
    """One that its tests may freeze."""
    made = KafkaBroker()
    yield made
    made.stop()


@pytest.fixture
async def clients_in_memory() -> AsyncIterator[Subject]:
    async with memory_clients() as made:
        yield made


@pytest.fixture
async def real_clients_of_stack(stack: Services) -> AsyncIterator[Subject]:
    async with real_clients(stack.kafka) as made:
        yield made


@pytest.fixture(params=["clients_in_memory", "real_clients_of_stack"], ids=["memory", "real"])
def clients(request: pytest.FixtureRequest) -> Subject:
    made: Subject = request.getfixturevalue(request.param)
    return made
