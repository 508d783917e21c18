"""Real records, real processes: from the log to the row to the metric, through every fault a test can cause quickly."""

import asyncio
import json
import signal
import struct
from datetime import UTC, datetime

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.record.util import calc_crc32c

from consumer.decoding import as_record
from consumer.lifecycle.model import Author, Event, Status
from consumer.postgres import migrations
from schemas import Reason
from tests.builders import HOUR, MINUTE, close, message, tick
from tests.e2e.conftest import PARTITIONS, Group, until
from tests.stack.broker import delete
from tests.stack.database import execute
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.postgres_server import PostgresServer
from tests.stack.replica import Replica
from tests.stack.roles import as_owner

NOW = datetime.now(UTC)


def talk(conversations: int, each: int) -> list[Event]:
    """Users and agents taking turns in many conversations."""
    return [
        message(
            Author.AGENT if turn % 3 == 2 else Author.USER, NOW - HOUR + turn * MINUTE, conversation_id=f"c-{number}"
        )
        for turn in range(each)
        for number in range(conversations)
    ]


async def applied(replica: Replica) -> float:
    return await replica.count("conversation_events_total", outcome="applied")


async def test_a_record_becomes_a_row_and_a_metric(group: Group) -> None:
    replica = await group.replica()

    await group.publish(message(at=NOW - HOUR), message(Author.AGENT, NOW - MINUTE), tick(NOW), close(at=NOW))
    await group.until_applied(4)

    assert await group.rows("SELECT status, version, closed_by FROM conversation") == [("agent_closed", 3, "agent")]
    metrics = {"topic": group.topic}
    await until(lambda: counted(replica, 2, "inbound-message", "applied", **metrics), "messages counted")
    await until(lambda: counted(replica, 1, "manual-close", "applied", **metrics), "the close counted")
    await until(lambda: counted(replica, 1, "tick", "early", **metrics), "the tick counted")
    attempts = "conversation_write_attempts_total"
    assert await replica.count(attempts, result="committed") == 3
    assert await replica.count(attempts, result="conflict") == 0
    assert await replica.count("conversation_lag_records") == 0


async def counted(replica: Replica, count: int, kind: str, outcome: str, **labels: str) -> bool:
    return await replica.count("conversation_events_total", type=kind, outcome=outcome, **labels) == count


async def test_a_redelivered_log_has_one_effect(group: Group) -> None:
    events = talk(20, 5)
    await group.publish(*events, *events)
    replica = await group.replica()
    await group.until_applied(200)
    await replica.stop()
    before = await group.rows("SELECT * FROM conversation ORDER BY 1")

    await group.rows("UPDATE kafka_offset SET next_offset = 0 RETURNING 1")
    replica = await group.replica()
    await group.until_applied(200)

    assert await group.history() == 100
    assert await group.rows("SELECT * FROM conversation ORDER BY 1") == before
    await until(lambda: counted(replica, 200, "inbound-message", "duplicate"), "all were duplicates")


async def test_replicas_come_and_are_killed_and_nothing_is_lost(group: Group) -> None:
    events = talk(200, 60)
    first = await group.replica(CONSUMER_WORKER__MAX_BATCH="50")
    await group.publish(*events[:4000])
    second = await group.replica(CONSUMER_WORKER__MAX_BATCH="50")
    await group.publish(*events[4000:8000])
    await until(lambda: owns(second), "the second replica has partitions")
    first.send(signal.SIGKILL)
    await group.publish(*events[8000:])

    await group.until_applied(12_000)

    assert await group.history() == 12_000
    assert await group.broken_version_chains() == []
    assert await second.count("conversation_assigned_partitions") == PARTITIONS


async def owns(replica: Replica) -> bool:
    return await replica.count("conversation_assigned_partitions") > 0


POISON = {
    Reason.INVALID_JSON: (b"c-1", b"\xff not json"),
    Reason.SCHEMA_VIOLATION: (b"c-1", json.dumps({**as_record(message()), "data": {}}).encode()),
    Reason.UNKNOWN_TYPE: (b"c-1", json.dumps({**as_record(message()), "type": "conversation.tick.v2"}).encode()),
    Reason.KEY_MISMATCH: (b"c-2", json.dumps(as_record(message())).encode()),
    Reason.BAD_TIME: (b"c-1", json.dumps({**as_record(message()), "time": "2001-01-01T00:00:00Z"}).encode()),
    Reason.RESERVED_SOURCE: (b"c-1", json.dumps({**as_record(message()), "source": "consumer"}).encode()),
    Reason.UNSTORABLE_TEXT: (b"c-1", json.dumps({**as_record(message()), "id": "nul\0"}).encode()),
    Reason.OVERSIZED: (b"c-1", json.dumps({**as_record(message()), "text": "x" * 65_536}).encode()),
}


@pytest.mark.parametrize("reason", POISON)
async def test_a_poison_record_becomes_a_dead_letter_and_its_neighbours_are_applied(
    group: Group, reason: Reason
) -> None:
    key, value = POISON[reason]
    before, after = (json.dumps(as_record(message(at=NOW))).encode() for _ in range(2))
    replica = await group.replica()

    await group.publish_raw([(b"c-1", before), (key, value), (b"c-1", after)])
    await group.until_applied(3)

    (letter,) = await group.dead_letters()
    headers = {name.removeprefix("__consumer.errors."): content.decode() for name, content in letter.headers}
    assert (letter.key, letter.value) == (key, value)
    assert (headers["reason"], headers["topic"], headers["group"]) == (reason, group.topic, group.kafka.group_id)
    assert {"partition", "offset", "timestamp", "error"} < headers.keys()
    assert await group.history() == 2
    assert await replica.count("conversation_dead_letters_total", reason=reason) == 1


@pytest.mark.parametrize("key", [None, b"c-1"])
async def test_a_record_without_a_value_is_kept_as_it_was(group: Group, key: bytes | None) -> None:
    await group.replica()

    await group.publish_raw([(key, None)])
    await group.until_applied(1)

    (letter,) = await group.dead_letters()
    assert (letter.key, letter.value) == (key, None)


@pytest.mark.parametrize("codec", ["gzip", "lz4", "snappy", "zstd"])
async def test_compressed_records_are_read(group: Group, codec: str) -> None:
    await group.replica()
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers, compression_type=codec)
    await producer.start()

    await producer.send_and_wait(group.topic, json.dumps(as_record(message(at=NOW))).encode(), b"c-1")
    await producer.stop()

    await group.until_applied(1)
    assert await group.history() == 1


async def test_an_oversized_record_that_compresses_well_is_a_dead_letter(group: Group) -> None:
    await group.replica()
    producer = AIOKafkaProducer(
        bootstrap_servers=group.kafka.bootstrap_servers, compression_type="gzip", max_request_size=10 * 2**20
    )
    await producer.start()

    await producer.send_and_wait(group.topic, b"x" * 5 * 2**20, b"c-1")
    await producer.stop()
    await group.publish(message(at=NOW))
    await group.until_applied(2)

    (letter,) = await group.dead_letters()
    assert dict(letter.headers)["__consumer.errors.reason"] == b"oversized"
    assert await group.history() == 1


async def test_a_record_that_the_client_cannot_read_stops_its_partition_only(group: Group) -> None:
    replica = await group.replica()
    await publish_unreadable(group, partition_of("c-1"))
    others = [f"c-{number}" for number in range(30) if partition_of(f"c-{number}") != partition_of("c-1")]
    await group.publish(*(message(at=NOW, conversation_id=key) for key in others))

    await until(lambda: is_unready(replica, "cannot be read: UnicodeDecodeError"), "the replica says why")
    await until(lambda: history_reaches(group, len(others)), "the other partitions go on")
    await group.rows(f"UPDATE kafka_offset SET next_offset = 1 WHERE partition = {partition_of('c-1')} RETURNING 1")
    await until(replica.ready, "ready again once the offset was set")


async def publish_unreadable(group: Group, partition: int) -> None:
    """A record with a header name that is not UTF-8, which brokers take; its checksum is right."""
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers)
    await producer.start()
    batch = producer.create_batch()
    batch.append(key=b"c-1", value=b"{}", timestamp=None, headers=[("AAAA", b"")])
    batch.close()
    built = bytearray(batch._build())
    place = built.index(b"AAAA")
    built[place : place + 4] = b"\xff\xfe\xff\xfe"
    built[17:21] = struct.pack(">I", calc_crc32c(bytes(built[21:])))
    batch._buffer = built
    await (await producer.send_batch(batch, group.topic, partition=partition))
    await producer.stop()


async def test_lag_counts_from_the_first_record_that_is_not_applied(group: Group) -> None:
    replica = await group.replica()
    await until(lambda: has_offsets(group), "all partitions started")
    connection = await asyncpg.connect(group.database)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM kafka_offset FOR UPDATE")
        await group.publish(*(message(at=NOW) for _ in range(5)))

        await until(lambda: lagging(replica, records=5, seconds=2.0), "the lag shows")
    await connection.close()
    await group.until_applied(5)

    await until(lambda: caught_up(replica), "the lag is gone")


async def lagging(replica: Replica, records: int, seconds: float) -> bool:
    behind = await replica.count("conversation_lag_records"), await replica.count("conversation_lag_seconds")
    return behind[0] == records and behind[1] >= seconds


async def caught_up(replica: Replica) -> bool:
    return await replica.count("conversation_lag_records") == 0


async def test_a_commit_marker_is_no_lag(group: Group) -> None:
    replica = await group.replica()
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers, transactional_id=group.kafka.group_id)
    await producer.start()
    async with producer.transaction():
        await producer.send_and_wait(group.topic, json.dumps(as_record(message(at=NOW))).encode(), b"c-1")
    await producer.stop()
    await group.until_applied(1)

    await until(lambda: caught_up(replica), "nothing is left to apply")


async def test_headers_of_a_dead_letter_are_kept(group: Group) -> None:
    await group.replica()
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers)
    await producer.start()

    await producer.send_and_wait(group.topic, b"?", b"c-1", headers=[("traceparent", b"00-ab-cd-01"), ("raw", b"\xff")])
    await producer.stop()
    await group.until_applied(1)

    (letter,) = await group.dead_letters()
    assert letter.headers[:2] == (("traceparent", b"00-ab-cd-01"), ("raw", b"\xff"))


async def test_what_postgresql_refuses_becomes_a_dead_letter(group: Group) -> None:
    await execute(as_owner(group.database), "ALTER TABLE conversation_event ADD CHECK (actor <> 'poison')")
    await group.replica()

    await group.publish(message(at=NOW - MINUTE), close(at=NOW, actor="poison"), message(at=NOW))
    await group.until_applied(3)

    (letter,) = await group.dead_letters()
    assert dict(letter.headers)["__consumer.errors.reason"] == b"refused"
    assert await group.rows("SELECT status, user_messages FROM conversation") == [("pending", 2)]


async def test_an_unavailable_dead_letter_topic_skips_nothing(group: Group) -> None:
    replica = await group.replica(CONSUMER_KAFKA__REQUEST_TIMEOUT_SECONDS="1")
    await delete(group.kafka.bootstrap_servers, group.kafka.dead_letter_topic)

    await group.publish_raw([(b"c-1", b"poison")])
    await group.publish(message(at=NOW))
    await until(lambda: is_unready(replica, "no answer from Kafka"), "the partition waits")
    assert await group.history() == 0
    await group.create_topic(group.kafka.dead_letter_topic)
    await group.until_applied(2)

    assert len(await group.dead_letters()) == 1
    assert await group.history() == 1


async def is_unready(replica: Replica, why: str) -> bool:
    status, body = await replica.get("/readyz")
    return status == 503 and why in body


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT, signal.SIGKILL], ids=["fast", "immediate", "crash"])
async def test_a_database_restart_loses_nothing_and_dead_letters_nothing(group: Group, how: signal.Signals) -> None:
    server = await asyncio.to_thread(PostgresServer)
    try:
        await asyncio.to_thread(migrations.upgrade, server.dsn)
        group.database = server.dsn
        replica = await group.replica(CONSUMER_WORKER__MAX_BATCH="100")
        events = talk(100, 60)
        publishing = asyncio.create_task(group.publish(*events))
        await group.until_applied(500)
        await asyncio.to_thread(server.restart, how)
        await publishing
        await group.until_applied(6000)

        assert await group.history() == 6000
        assert await group.broken_version_chains() == []
        assert await replica.count("conversation_dead_letters_total") == 0
        await until(replica.ready, "ready again")
    finally:
        await asyncio.to_thread(server.stop)


async def test_brokers_that_do_not_answer_make_the_replica_unready_until_they_do(group: Group) -> None:
    broker = await asyncio.to_thread(KafkaBroker)
    try:
        group.kafka = group.kafka.model_copy(update={"bootstrap_servers": broker.bootstrap_servers})
        await group.create_topic(group.topic, PARTITIONS)
        await group.create_topic(group.kafka.dead_letter_topic, configs={"max.message.bytes": str(2 * 2**20)})
        replica = await group.replica()
        await group.publish(message(at=NOW - HOUR))
        await group.until_applied(1)

        broker.freeze()
        await until(lambda: is_unready(replica, "Kafka: does not answer"), "not ready")
        assert (await replica.get("/livez"))[0] == 200
        broker.thaw()
        await until(replica.ready, "ready again")
        await group.publish(message(at=NOW))
        await group.until_applied(2)

        assert await replica.stop() == 0
    finally:
        await asyncio.to_thread(broker.stop)


async def test_sigterm_mid_run_finishes_commits_and_leaves(group: Group) -> None:
    await group.publish(*talk(100, 100))
    replica = await group.replica(CONSUMER_WORKER__MAX_BATCH="100")
    await group.until_applied(1000)

    assert await replica.stop(signal.SIGTERM) == 0

    stored = await group.stored()
    assert await group.committed() == stored
    assert await group.history() == sum(stored.values()) < 10_000
    await group.replica()
    await group.until_applied(10_000)
    assert await group.history() == 10_000
    assert await group.broken_version_chains() == []


async def test_the_databases_offset_wins_over_kafkas(group: Group) -> None:
    replica = await group.replica()
    await group.publish(*talk(30, 3))
    await group.until_applied(90)
    await replica.stop()
    await group.rows("DELETE FROM conversation_event RETURNING 1")
    await group.rows("DELETE FROM conversation RETURNING 1")
    await group.rows("UPDATE kafka_offset SET next_offset = 0 RETURNING 1")

    await group.replica()
    await group.until_applied(90)

    assert await group.history() == 90


async def test_a_rewound_database_is_noticed_by_the_live_consumer(group: Group) -> None:
    replica = await group.replica()
    await group.publish(*talk(30, 3))
    await group.until_applied(90)

    await group.rows("UPDATE kafka_offset SET next_offset = 0 RETURNING 1")
    await group.publish(*(message(at=NOW, conversation_id=f"c-{number}") for number in range(30)))
    await group.until_applied(120)

    assert await group.history() == 120
    await until(lambda: counted(replica, 90, "inbound-message", "duplicate"), "the rewound records were seen again")


@pytest.mark.parametrize(
    ("mistake", "why"),
    [
        ("UPDATE kafka_offset SET next_offset = 1000 WHERE partition = 0 RETURNING 1", "is outside the log 0..0"),
        ("UPDATE kafka_offset SET cluster_id = 'another' WHERE partition = 0 RETURNING 1", "counts in cluster another"),
    ],
    ids=["outside the log", "another cluster"],
)
async def test_an_offset_that_does_not_fit_the_log_stops_that_partition_only(
    group: Group, mistake: str, why: str
) -> None:
    replica = await group.replica()
    await until(lambda: has_offsets(group), "all partitions started")
    await replica.stop()
    await group.rows(mistake)

    replica = await group.unready_replica()
    await until(lambda: is_unready(replica, why), "the replica says why it is not ready")
    events = talk(30, 1)
    await group.publish(*events)

    _, reason = await replica.get("/readyz")
    assert f"offsets set {group.topic} 0 OFFSET" in reason
    assert (await replica.get("/livez"))[0] == 200
    on_others = sum(partition_of(event.conversation_id) != 0 for event in events)
    await until(lambda: history_reaches(group, on_others), "the other partitions go on")


async def has_offsets(group: Group) -> bool:
    return len(await group.stored()) == PARTITIONS


def partition_of(conversation_id: str) -> int:
    partitions = list(range(PARTITIONS))
    return int(DefaultPartitioner()(conversation_id.encode(), partitions, partitions))


async def history_reaches(group: Group, count: int) -> bool:
    return await group.history() == count


async def test_records_of_an_aborted_transaction_are_never_seen(group: Group) -> None:
    replica = await group.replica()
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers, transactional_id=group.kafka.group_id)
    await producer.start()
    for author, keep in ((Author.USER, True), (Author.AGENT, False), (Author.USER, True)):
        await producer.begin_transaction()
        await producer.send_and_wait(group.topic, json.dumps(as_record(message(author, NOW))).encode(), b"c-1")
        await (producer.commit_transaction() if keep else producer.abort_transaction())
    await producer.stop()

    await until(lambda: history_reaches(group, 2), "both committed messages applied")

    assert await group.rows("SELECT status, user_messages FROM conversation") == [("pending", 2)]
    assert await replica.ready()


async def test_records_on_a_wrong_partition_are_applied_and_counted(group: Group) -> None:
    replica = await group.replica()
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers)
    await producer.start()
    for partition in range(PARTITIONS):
        record = json.dumps(as_record(message(at=NOW))).encode()
        await producer.send_and_wait(group.topic, record, b"c-1", partition=partition)
    await producer.stop()

    await group.until_applied(PARTITIONS)

    assert await group.rows("SELECT user_messages FROM conversation") == [(PARTITIONS,)]
    await until(lambda: misplaced(replica, group.topic, PARTITIONS - 1), "the misplaced records are counted")


async def misplaced(replica: Replica, topic: str, count: int) -> bool:
    return await replica.count("conversation_misplaced_records_total", topic=topic) == count


async def test_an_event_in_binary_mode_is_applied_as_one_in_structured_mode(group: Group) -> None:
    await group.replica()
    structured = as_record(message(Author.AGENT, NOW))
    attributes = {**as_record(message(at=NOW - MINUTE)), "data": None}
    headers = [(f"ce_{name}", str(text).encode()) for name, text in attributes.items() if text]
    producer = AIOKafkaProducer(bootstrap_servers=group.kafka.bootstrap_servers)
    await producer.start()
    await producer.send_and_wait(group.topic, b'{"author": "user"}', b"c-1", headers=headers)
    await producer.send_and_wait(group.topic, json.dumps(structured).encode(), b"c-1")
    await producer.send_and_wait(group.topic, b'{"author": "user"}', b"c-1", headers=headers[1:])
    await producer.stop()

    await group.until_applied(3)

    assert await group.rows("SELECT status, user_messages, agent_messages FROM conversation") == [("progress", 1, 1)]
    (letter,) = await group.dead_letters()
    assert letter.headers[: len(headers) - 1] == tuple(headers[1:])
    assert dict(letter.headers)["__consumer.errors.error"] == b"ce_specversion: is required"


async def test_a_frozen_owner_that_comes_back_harms_nothing(group: Group) -> None:
    frozen = await group.replica(CONSUMER_WORKER__MAX_BATCH="20")
    await group.publish(*talk(100, 20))
    await group.until_applied(200)
    frozen.send(signal.SIGSTOP)
    successor = await group.replica()
    await group.until_applied(2000)
    frozen.send(signal.SIGCONT)
    await group.publish(*(close(Status.AGENT_CLOSED, NOW, conversation_id=f"c-{number}") for number in range(100)))

    await group.until_applied(2100)

    assert await group.history() == 2100
    assert await group.broken_version_chains() == []
    await until(frozen.ready, "the thawed replica is back in the group")
    assert await successor.ready()


async def test_the_ticker_lets_deadlines_pass_without_any_other_event(group: Group) -> None:
    await group.replica(CONSUMER_POLICY__PENDING_TTL="2s")
    ticker = await group.unready_replica("ticker", CONSUMER_TICKER__INTERVAL_SECONDS="0.05")
    await until(ticker.ready, "the ticker is ready")
    await group.publish(*(message(at=datetime.now(UTC), conversation_id=f"c-{number}") for number in range(50)))

    await until(lambda: expired(group, 50), "all have expired")

    assert await ticker.count("conversation_ticks_total", result="emitted") == 50
    assert await group.rows("SELECT DISTINCT closed_by, close_reason FROM conversation") == [("timer", "pending_ttl")]
    assert await ticker.stop() == 0


async def expired(group: Group, count: int) -> bool:
    return bool(await group.one("SELECT count(*) FROM conversation WHERE status = 'expired'") == count)


async def test_transitions_are_left_for_the_outbox(group: Group) -> None:
    await group.replica()
    await group.publish(message(at=NOW - HOUR), message(Author.AGENT, NOW), message(at=NOW), close(at=NOW))
    await group.until_applied(4)

    outbox = await group.rows("SELECT version, to_status FROM transition_outbox ORDER BY id")

    assert outbox == [(1, "pending"), (2, "progress"), (4, "agent_closed")]
