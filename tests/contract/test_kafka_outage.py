"""How the clients behave while no broker answers: in memory as aiokafka's do, whose broker is frozen."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import pytest
from aiokafka.errors import KafkaTimeoutError

from tests.contract.kafka_clients import (
    SECONDS,
    Subject,
    joined_at,
    memory_clients,
    publish,
    read,
    real_clients,
    values,
)
from tests.stack.kafka_broker import KafkaBroker

REQUEST_SECONDS = 0.5
"""The limit on a request of the clients here."""


@dataclass(frozen=True, slots=True)
class Outage:
    clients: Subject
    begin: Callable[[], None]
    end: Callable[[], None]


@pytest.fixture
async def in_memory() -> AsyncIterator[Outage]:
    async with memory_clients() as clients:
        yield Outage(clients, clients.cluster.fail, clients.cluster.heal)


@pytest.fixture
async def with_a_frozen_broker(broker: KafkaBroker) -> AsyncIterator[Outage]:
    async with real_clients(broker.bootstrap_servers) as clients:
        yield Outage(
            clients,
            broker.freeze,
            broker.thaw,
        )


@pytest.fixture(params=["in_memory", "with_a_frozen_broker"])
def outage(request: pytest.FixtureRequest) -> Iterator[Outage]:
    made: Outage = request.getfixturevalue(request.param)
    yield made
    made.end()


async def test_what_is_fetched_is_returned_and_nothing_more(outage: Outage) -> None:
    clients = outage.clients
    await publish(clients, 0, b"a", b"b", b"c")
    place, _ = await joined_at(clients, 0)
    first = await read(clients, 1, place)

    outage.begin()

    assert values([*first, *await read(clients, 2, place)]) == [b"a", b"b", b"c"]
    assert await clients.consumer.getmany(place, timeout_ms=50) == {}
    assert await clients.consumer.position(place) == 3


async def test_the_ends_of_the_log_are_not_known_in_time(outage: Outage) -> None:
    place, _ = await joined_at(outage.clients, 0)

    outage.begin()

    for asked in (outage.clients.consumer.end_offsets, outage.clients.consumer.beginning_offsets):
        with pytest.raises(KafkaTimeoutError):
            await asyncio.wait_for(asked([place]), SECONDS)


async def test_a_commit_waits_for_the_end_of_it(outage: Outage) -> None:
    place, _ = await joined_at(outage.clients, 0)
    await outage.clients.consumer.commit({place: 1})

    outage.begin()
    committing = asyncio.create_task(outage.clients.consumer.commit({place: 5}))
    await asyncio.wait([committing], timeout=3 * REQUEST_SECONDS)
    still_waits = not committing.done()
    outage.end()

    await asyncio.wait_for(committing, SECONDS)
    assert still_waits
    assert await outage.clients.committed(0) == 5


async def test_an_acknowledgement_comes_after_the_end_of_it_in_the_order_of_sending(outage: Outage) -> None:
    clients = outage.clients
    place, _ = await joined_at(clients, 0)
    await publish(clients, 0, b"before")

    outage.begin()
    sent = [await clients.producer.send(clients.topic, value, partition=0) for value in (b"a", b"b")]
    await asyncio.wait(sent, timeout=3 * REQUEST_SECONDS)
    none_is_acknowledged = not any(future.done() for future in sent)
    outage.end()

    acknowledged = await asyncio.wait_for(asyncio.gather(*sent), SECONDS)
    assert none_is_acknowledged
    assert [metadata.offset for metadata in acknowledged] == [1, 2]
    assert values(await read(clients, 3, place)) == [b"before", b"a", b"b"]
