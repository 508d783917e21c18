"""Kafka loses brokers, refuses writes, forgets records, hands out markers of transactions."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import suppress

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.errors import KafkaError
from aiokafka.structs import TopicPartition

from consumer.decoding import encoded
from consumer.kafka.connection import milliseconds
from consumer.kafka.producer import acknowledged
from tests.chaos.faults.catalogue import Track, fault
from tests.chaos.faults.processes import DRAIN_SECONDS
from tests.chaos.faults.traffic import send_poison
from tests.chaos.operator import not_ready, set_offset
from tests.chaos.rig import DEAD_LETTER_BROKER, PARTITIONS, SESSION_SECONDS, Rig
from tests.chaos.sender import Record
from tests.chaos.waiting import within

AWAY_SECONDS = 15.0
READ_SECONDS = 30.0
UNREAD = 10


@fault(4, "a broker is killed and comes back", Track.BROKERS, weight=5)
async def broker_kill(rig: Rig) -> None:
    number = rig.rng.randrange(rig.brokers.count)
    await rig.brokers.kill(number)
    await asyncio.sleep(rig.rng.uniform(0, SESSION_SECONDS))
    await rig.brokers.start(number)


@fault(4, "a broker is frozen", Track.BROKERS)
async def broker_frozen(rig: Rig) -> None:
    number = rig.rng.randrange(rig.brokers.count)
    rig.brokers.freeze(number)
    await asyncio.sleep(rig.rng.uniform(1, 2 * SESSION_SECONDS))
    rig.brokers.thaw(number)


@fault(5, "all brokers are away for a while, and a replica is told to stop meanwhile", Track.BROKERS, weight=0.2)
async def brokers_away(rig: Rig) -> None:
    for number in range(rig.brokers.count):
        await rig.brokers.kill(number)
    async with rig.any_replica() as member:
        async with rig.deadline(DRAIN_SECONDS, "SIGTERM works while Kafka is away"):
            await member.end(signal.SIGTERM)
        await asyncio.sleep(AWAY_SECONDS)
    await asyncio.gather(*(rig.brokers.start(number) for number in range(rig.brokers.count)))


@fault(
    23,
    "the broker of the dead-letter topic is away, and every replica is killed meanwhile",
    Track.BROKERS,
    weight=0,
    dead_letters_on_one_broker=True,
)
async def dead_letters_refused(rig: Rig) -> None:
    await rig.brokers.kill(DEAD_LETTER_BROKER)
    try:
        await send_poison(rig, 20)

        async def waits() -> bool:
            return any("Kafka" in reason for reason in await not_ready(rig))

        rig.expect(await within(READ_SECONDS, waits), "a replica that cannot send dead letters is not ready")
        for member in rig.replicas.members:
            await member.end(signal.SIGKILL)
    finally:
        await rig.brokers.start(DEAD_LETTER_BROKER)


@fault(25, "retention takes records that nobody has read", Track.BROKERS, weight=0)
async def retention(rig: Rig) -> None:
    partition = rig.rng.randrange(PARTITIONS)
    stored, end = await _leave_unread(rig, partition)
    await rig.keep_log(partition, unread_from=stored, end=end)
    client = AIOKafkaAdminClient(bootstrap_servers=rig.kafka.bootstrap_servers)
    await client.start()
    try:
        await client.delete_records({TopicPartition(rig.kafka.topics[0], partition): RecordsToDelete(end)})
    finally:
        await client.close()
    await _until_stopped_and_set(rig, partition, "start")


@fault(25, "the topic is of another cluster", Track.BROKERS, weight=0)
async def another_cluster(rig: Rig) -> None:
    partition = rig.rng.randrange(PARTITIONS)
    stored, _ = await _leave_unread(rig, partition)
    await rig.fetch("UPDATE kafka_offset SET cluster_id = 'elsewhere' WHERE partition = $1", partition)
    await _until_stopped_and_set(rig, partition, str(stored))


async def _leave_unread(rig: Rig, partition: int) -> tuple[int, int]:
    """Ends all replicas, and waits for records behind them: the stored offset, and the end of the log."""
    for member in rig.replicas.members:
        member.hold_down()
        await member.end(signal.SIGTERM)
    ((stored,),) = await rig.fetch("SELECT next_offset FROM kafka_offset WHERE partition = $1", partition)

    async def is_behind() -> bool:
        return bool((await rig.log_ends())[partition] > stored + UNREAD)

    rig.expect(await within(READ_SECONDS, is_behind), "records are sent while nobody reads")
    return stored, (await rig.log_ends())[partition]


async def _until_stopped_and_set(rig: Rig, partition: int, offset: str) -> None:
    for member in rig.replicas.members:
        member.let_up()
    remedy = f"offsets set {rig.kafka.topics[0]} {partition} "

    async def says_so() -> bool:
        return any(remedy in reason for reason in await not_ready(rig))

    rig.expect(await within(READ_SECONDS, says_so), "its replica is not ready, and /status says what to run")
    await set_offset(rig, partition, offset)


@fault(
    26,
    "a transactional producer commits and aborts; records come on the partitions of another partitioner",
    Track.TRAFFIC,
)
async def transactions(rig: Rig) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=rig.kafka.bootstrap_servers,
        transactional_id=f"{rig.kafka.group_id}-{rig.rng.random()}",
        # One that nobody ends holds back what comes after it, for that long.
        transaction_timeout_ms=milliseconds(SESSION_SECONDS),
    )
    try:
        await producer.start()
        for _ in range(5):
            await _send_in_transaction(rig, producer, _nobodys_events(rig), commit=False)
            records = rig.traffic.records(20)
            try:
                await _send_in_transaction(rig, producer, records, commit=True)
            except KafkaError:  # a broker is away: nobody knows whether it was committed, and the producer is done for
                await rig.sender.send(records)
                return
    except KafkaError:
        return
    finally:
        with suppress(KafkaError):
            await producer.stop()


def _nobodys_events(rig: Rig) -> Sequence[Record]:
    """Events that the ledger does not know: if one is applied, nobody has sent it."""
    return [encoded(rig.traffic.event(rig.rng.choice(rig.traffic.cold), "aborted")) for _ in range(20)]


async def _send_in_transaction(
    rig: Rig, producer: AIOKafkaProducer, records: Sequence[Record], *, commit: bool
) -> None:
    """Each record on any partition. Of an abort, nothing may ever be seen. Raises `KafkaError`."""
    await producer.begin_transaction()
    sent = [
        await producer.send(rig.kafka.topics[0], value, key, partition=rig.rng.randrange(PARTITIONS))
        for key, value in records
    ]
    # aiokafka commits a transaction of which a record was refused.
    await acknowledged(sent)
    await (producer.commit_transaction() if commit else producer.abort_transaction())
