"""Sending over a client in memory: nothing counts as sent before it is acknowledged."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import (
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    NotEnoughReplicasError,
    TopicAuthorizationFailedError,
)

from consumer.errors import PartitionStoppedError, UnavailableError
from consumer.kafka.client import STOP_SECONDS
from consumer.kafka.placement import home_of
from consumer.kafka.producer import KafkaProducer
from consumer.records import DeadLetter, Record
from consumer.settings import KafkaSettings
from schemas import Reason
from tests.memory_kafka.cluster import Headers, MemoryCluster
from tests.memory_kafka.producer import MemoryProducer

pytestmark = pytest.mark.virtual_time
SETTINGS = KafkaSettings(group_id="group", dead_letter_topic="dead")
LIMIT = 1000
"""The brokers' limit on a dead letter, in bytes."""


@dataclass(frozen=True, slots=True)
class Subject:
    cluster: MemoryCluster
    producer: KafkaProducer

    def letters(self) -> list[ConsumerRecord[bytes, bytes]]:
        return self.cluster.log(TopicPartition("dead", 0)).records()


def new_cluster(seconds: float = 0.0) -> MemoryCluster:
    cluster = MemoryCluster(pace=lambda: seconds)
    cluster.create("dead", 1, LIMIT)
    cluster.create("events", 3)
    return cluster


@pytest.fixture
async def subject() -> AsyncIterator[Subject]:
    cluster = new_cluster()
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        yield Subject(cluster, producer)


def letter(value: bytes | None = b"value", key: bytes | None = b"key", headers: Headers = ()) -> DeadLetter:
    return DeadLetter(Record("events", 2, 17, 1234, key, value, tuple(headers)), Reason.INVALID_JSON, "no JSON")


async def test_send_returns_only_after_all_acknowledgements() -> None:
    cluster = new_cluster(seconds=1.0)
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        started = asyncio.get_running_loop().time()

        await producer.send([letter(b"1"), letter(b"2"), letter(b"3")])

        assert asyncio.get_running_loop().time() == started + 3
        assert [record.value for record in Subject(cluster, producer).letters()] == [b"1", b"2", b"3"]


async def test_send_waits_for_as_long_as_no_broker_answers(subject: Subject) -> None:
    subject.cluster.fail()
    sending = asyncio.create_task(subject.producer.send([letter()]))
    await asyncio.sleep(1000)
    waits = not sending.done() and not subject.letters()

    subject.cluster.heal()
    await sending

    assert waits
    assert len(subject.letters()) == 1


@pytest.mark.parametrize("error", [NotEnoughReplicasError(), TopicAuthorizationFailedError("dead"), OSError()])
async def test_one_acknowledgement_that_fails_is_an_outage(subject: Subject, error: Exception) -> None:
    subject.cluster.raise_next("send", error)

    with pytest.raises(UnavailableError):
        await subject.producer.send([letter(b"1"), letter(b"2")])


async def test_a_client_that_has_failed_is_replaced_and_stopped() -> None:
    """As aiokafka's that gave a batch up: the broker refuses the sequence numbers of all that come after."""
    cluster, made = new_cluster(), list[MemoryProducer]()

    class Noted(MemoryProducer):
        def __init__(self, **arguments: object) -> None:
            super().__init__(cluster, **arguments)
            made.append(self)

    async with KafkaProducer.open(SETTINGS, client=Noted) as producer:
        cluster.raise_next("send", KafkaTimeoutError())
        with pytest.raises(UnavailableError):
            await producer.send([letter(b"1")])
        await producer.send([letter(b"1")])
        await producer.send([letter(b"2")])

        assert [client.is_stopped for client in made] == [True, False]
    assert [record.value for record in Subject(cluster, producer).letters()] == [b"1", b"2"]


async def test_what_others_sent_with_a_client_that_is_replaced_is_acknowledged() -> None:
    cluster = new_cluster(seconds=1.0)
    cluster.raise_next("send", KafkaTimeoutError())
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        failing, other = producer.send([letter(b"1")]), producer.send([letter(b"2")])

        results = await asyncio.gather(failing, other, return_exceptions=True)

    assert [type(result) for result in results] == [UnavailableError, type(None)]
    assert [record.value for record in Subject(cluster, producer).letters()] == [b"2"]


async def test_a_client_that_is_replaced_ends_whole_however_long_that_takes() -> None:
    cluster, made = new_cluster(seconds=2 * STOP_SECONDS), list[MemoryProducer]()

    def noted(**arguments: object) -> MemoryProducer:
        made.append(MemoryProducer(cluster, **arguments))
        return made[-1]

    async with KafkaProducer.open(SETTINGS, client=noted) as producer:
        cluster.raise_next("send", KafkaTimeoutError())
        sending = [asyncio.create_task(producer.send([letter(value)])) for value in (b"1", b"2")]

        await asyncio.wait(sending, timeout=10 * STOP_SECONDS)
        await asyncio.sleep(0)

        assert [task.done() for task in sending] == [True, True]
        assert isinstance(sending[0].exception(), UnavailableError)
        assert sending[1].exception() is None
        assert not producer._replaced


async def test_no_dead_letters_need_no_broker(subject: Subject) -> None:
    subject.cluster.fail()

    await subject.producer.send([])

    subject.cluster.heal()
    assert subject.letters() == []


async def test_a_dead_letter_is_its_record_byte_for_byte_with_the_facts_after_its_headers(subject: Subject) -> None:
    headers = (("a", b"\x00\xff"), ("__consumer.errors.topic", b"older"), ("a", b""))

    await subject.producer.send([letter(b"\xff\x00", b"\x00", headers=headers)])

    (found,) = subject.letters()
    assert (found.key, found.value) == (b"\x00", b"\xff\x00")
    assert list(found.headers) == [
        *headers,
        ("__consumer.errors.topic", b"events"),
        ("__consumer.errors.partition", b"2"),
        ("__consumer.errors.offset", b"17"),
        ("__consumer.errors.timestamp", b"1234"),
        ("__consumer.errors.group", b"group"),
        ("__consumer.errors.reason", b"invalid_json"),
        ("__consumer.errors.error", b"no JSON"),
    ]


@pytest.mark.parametrize(("key", "value"), [(None, None), (b"key", None), (None, b"value"), (b"", b"")])
async def test_a_key_or_value_that_is_null_stays_null(subject: Subject, key: bytes | None, value: bytes | None) -> None:
    await subject.producer.send([letter(value, key, headers=(("a", b"b"),))])

    (found,) = subject.letters()
    assert (found.key, found.value) == (key, value)
    assert found.headers[0] == ("a", b"b")
    assert len(found.headers) == 8


async def test_a_record_without_key_and_value_goes_to_the_first_partition(subject: Subject) -> None:
    await subject.producer.publish("events", [(None, None)])

    assert [len(subject.cluster.log(TopicPartition("events", number)).records()) for number in range(3)] == [1, 0, 0]


@pytest.mark.parametrize("size", [LIMIT, 65 * 2**20])
async def test_a_dead_letter_that_does_not_fit_stops_the_partition(subject: Subject, size: int) -> None:
    """The brokers refuse the one in its acknowledgement, the client the other at once."""
    with pytest.raises(PartitionStoppedError, match=r"^a dead letter does not fit: raise max.message.bytes of dead$"):
        await subject.producer.send([letter(b"x" * size)])


@pytest.mark.parametrize("call", ["publish", "send_records"])
async def test_records_are_sent_once_all_are_acknowledged_to_the_partition_of_their_key(call: str) -> None:
    cluster = new_cluster(seconds=1.0)
    keys = [b"c-%d" % number for number in range(10)]
    records = [Record("events", 0, 0, 0, key, b"v", (("a", b"b"),)) for key in keys]
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        started = asyncio.get_running_loop().time()

        if call == "publish":
            await producer.publish("events", [(key, b"v") for key in keys])
        else:
            await producer.send_records(records)

        assert asyncio.get_running_loop().time() == started + 10
    for number in range(3):
        found = cluster.log(TopicPartition("events", number)).records()
        assert [record.key for record in found] == [key for key in keys if home_of(key, 3) == number]
        assert {record.value for record in found} == {b"v"}
        assert {record.headers for record in found} == {() if call == "publish" else (("a", b"b"),)}


async def test_a_record_that_is_not_acknowledged_is_an_outage(subject: Subject) -> None:
    for _ in range(2):
        subject.cluster.raise_next("send", MessageSizeTooLargeError())

    with pytest.raises(UnavailableError):
        await subject.producer.publish("events", [(b"k", b"v")])
    with pytest.raises(UnavailableError):
        await subject.producer.send_records([Record("events", 0, 0, 0, b"k", b"v")])


async def test_a_record_goes_to_the_topic_that_it_names(subject: Subject) -> None:
    await subject.producer.send_records([Record("dead", 0, 0, 0, b"k", b"v")])

    assert [record.value for record in subject.letters()] == [b"v"]


async def test_the_client_waits_for_all_replicas_and_repeats_nothing() -> None:
    made: list[MemoryProducer] = []

    def client(**arguments: object) -> MemoryProducer:
        made.append(MemoryProducer(new_cluster(), **arguments))
        return made[-1]

    async with KafkaProducer.open(SETTINGS, 10, client):
        pass

    arguments = made[0].arguments
    assert (arguments["acks"], arguments["enable_idempotence"]) == ("all", True)
    assert arguments["max_request_size"] == 640
    assert arguments["bootstrap_servers"] == SETTINGS.bootstrap_servers
    assert arguments["compression_type"] == "gzip"


async def test_leaving_sends_what_is_under_way() -> None:
    cluster = new_cluster(seconds=1.0)
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        sending = asyncio.create_task(producer.send([letter()]))
        await asyncio.sleep(0)

    await sending
    assert len(cluster.log(TopicPartition("dead", 0)).records()) == 1


async def test_leaving_is_bounded_in_time() -> None:
    cluster = new_cluster()
    async with KafkaProducer.open(SETTINGS, client=partial(MemoryProducer, cluster)) as producer:
        cluster.fail()
        sending = asyncio.create_task(producer.send([letter()]))
        await asyncio.sleep(0)
        started = asyncio.get_running_loop().time()

    assert asyncio.get_running_loop().time() == started + STOP_SECONDS
    sending.cancel()


async def test_a_client_that_fails_at_its_stop_hides_nothing() -> None:
    class Stubborn(MemoryProducer):
        async def stop(self) -> None:
            await super().stop()
            raise NotEnoughReplicasError

    cluster = new_cluster()
    async with KafkaProducer.open(SETTINGS, client=partial(Stubborn, cluster)) as producer:
        await producer.send([letter()])

    assert len(cluster.log(TopicPartition("dead", 0)).records()) == 1


async def test_an_error_inside_stops_the_client_and_is_not_hidden() -> None:
    made = MemoryProducer(new_cluster())

    with pytest.raises(ZeroDivisionError):
        async with KafkaProducer.open(SETTINGS, client=lambda **_: made):
            raise ZeroDivisionError

    assert made.is_stopped


async def test_a_client_that_cannot_start_is_stopped_and_its_error_is_not_hidden() -> None:
    class Unstartable(MemoryProducer):
        async def start(self) -> None:
            raise ZeroDivisionError

    made = Unstartable(new_cluster())

    with pytest.raises(ZeroDivisionError):
        async with KafkaProducer.open(SETTINGS, client=lambda **_: made):
            pytest.fail("it is open")

    assert made.is_stopped
