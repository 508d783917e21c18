"""What `KafkaProducer` relies on: the producer in memory does as aiokafka's does."""

import asyncio

import pytest
from aiokafka.errors import (
    KafkaConnectionError,
    MessageSizeTooLargeError,
    ProducerClosed,
    UnknownTopicOrPartitionError,
)

from consumer.kafka.placement import home_of
from tests.contract.kafka_clients import LIMIT, SECONDS, Subject, joined_at, read


async def test_send_returns_before_the_acknowledgement_which_names_the_place(clients: Subject) -> None:
    acknowledged = await clients.producer.send(clients.topic, b"value", partition=1)

    assert not acknowledged.done()
    metadata = await asyncio.wait_for(acknowledged, SECONDS)
    assert (metadata.topic, metadata.partition, metadata.offset) == (clients.topic, 1, 0)


async def test_a_key_has_its_partition_by_murmur2(clients: Subject) -> None:
    keys = [b"c-%d" % number for number in range(20)]
    sent = [await clients.producer.send(clients.topic, b"", key) for key in keys]

    found = [metadata.partition for metadata in await asyncio.gather(*sent)]

    assert found == [home_of(key, 2) for key in keys]


async def test_only_a_batch_takes_a_record_without_key_and_value(clients: Subject) -> None:
    with pytest.raises(AssertionError):
        await clients.producer.send(clients.topic, None, None)
    batch = clients.producer.create_batch()
    batch.append(key=None, value=None, timestamp=None, headers=[("a", b"b")])
    partitions = await clients.producer.partitions_for(clients.topic)
    await (await clients.producer.send_batch(batch, clients.topic, partition=min(partitions)))
    place, _ = await joined_at(clients, 0)

    (record,) = await read(clients, 1, place)

    assert (record.key, record.value, list(record.headers)) == (None, None, [("a", b"b")])


async def test_the_client_refuses_a_record_over_its_limit_at_once(clients: Subject) -> None:
    with pytest.raises(MessageSizeTooLargeError):
        await clients.producer.send(clients.topic, b"x" * 2 * LIMIT)


async def test_the_brokers_refuse_a_record_over_the_topics_limit_in_its_acknowledgement(clients: Subject) -> None:
    refused = await clients.producer.send(clients.topic, b"x" * LIMIT, partition=0)
    taken = await clients.producer.send(clients.topic, b"x", partition=1)

    with pytest.raises(MessageSizeTooLargeError):
        await refused
    assert (await taken).offset == 0


async def test_a_topic_that_is_not_there_is_refused_in_time(clients: Subject) -> None:
    with pytest.raises(UnknownTopicOrPartitionError):
        await asyncio.wait_for(clients.producer.send(f"{clients.topic}-missing", b"x"), SECONDS)


async def test_a_stopped_producer_has_sent_everything_and_sends_nothing_more(clients: Subject) -> None:
    acknowledged = [await clients.producer.send(clients.topic, b"x", partition=0) for _ in range(3)]

    await clients.producer.stop()
    await clients.producer.stop()

    assert [future.result().offset for future in acknowledged] == [0, 1, 2]
    with pytest.raises(ProducerClosed):
        await clients.producer.send(clients.topic, b"x")


async def test_nothing_starts_without_a_broker(clients: Subject) -> None:
    with pytest.raises(KafkaConnectionError):
        await clients.unreachable.start()
    await clients.unreachable.stop()
