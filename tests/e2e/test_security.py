"""A whole system with TLS, SASL and ACLs on: what each user may do is enough, and no secret is ever shown."""

import asyncio
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumer.decoding import as_record
from consumer.kafka.producer import HEADER, KafkaProducer
from consumer.postgres import migrations
from consumer.records import Record
from consumer.settings import KafkaSettings
from tests.builders import close, message
from tests.e2e.conftest import Group, until
from tests.e2e.test_commands import command
from tests.stack.acls import Acl, add, parse, remove
from tests.stack.broker import delete, read_all
from tests.stack.database import execute
from tests.stack.postgres_server import PostgresServer
from tests.stack.replica import Replica
from tests.stack.secure_broker import PASSWORD, SecureBroker, secure_broker

NOW = datetime.now(UTC)
DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
COMMANDS = re.findall(r"^    (kafka-acls .*)$", DOCUMENT.read_text(), re.MULTILINE)
ACLS = [acl for line in COMMANDS for acl in parse(line)]
OF_REPLICA = [acl for acl in ACLS if acl.principal == "User:consumer"]
TOPICS = ("conversation.events", "conversation.dead-letter", "conversation.transition")
CANARIES = {
    name: f"canary-{name}-4711"
    for name in (
        "text",
        "extension",
        "header",
        "actor",
        "reason",
        "author",
        "status",
        "body",
        "refused",
        "crash",
        "subject",
    )
}
SECRETS = {"database": "canary-database-4711", "key": "canary-key-4711", "sasl": PASSWORD}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with secure_broker(tmp_path_factory.mktemp("tls")) as started:
        asyncio.run(add(started.admin, *ACLS))
        yield started


def as_user(broker: SecureBroker, user: str) -> dict[str, str]:
    """The settings of a process that is nobody but this user."""
    return {
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": broker.address("SASL"),
        "CONSUMER_KAFKA__SECURITY_PROTOCOL": "SASL_SSL",
        "CONSUMER_KAFKA__SSL_CA_FILE": str(broker.authority.certificate),
        "CONSUMER_KAFKA__SASL_USERNAME": user,
        "CONSUMER_KAFKA__SASL_PASSWORD": PASSWORD,
    }


@pytest.fixture
async def system(broker: SecureBroker, database: str, tmp_path: Path) -> AsyncIterator[Group]:
    """Topics as the administrator's ACLs allow, and a database as the app may use it."""
    group = Group(KafkaSettings(**broker.sasl(session_timeout_seconds=3)), database, tmp_path)
    code, _, err = await command(group, "topics", "--partitions", "2", **as_user(broker, "administrator"))
    assert (code, err) == (0, "")
    yield group
    for replica in group.replicas:
        await replica.stop(signal.SIGKILL)
    await delete(broker.admin.bootstrap_servers, *TOPICS)


async def succeeds(group: Group, *arguments: str, **settings: str) -> str:
    code, out, err = await command(group, *arguments, **settings)
    assert code == 0, out + err
    return out


async def test_each_user_does_its_task_with_its_acls_alone(broker: SecureBroker, system: Group, tmp_path: Path) -> None:
    replica = await system.replica(**as_user(broker, "consumer"), CONSUMER_POLICY__PENDING_TTL="2s")
    ticker = await system.unready_replica("ticker", **as_user(broker, "ticker"))
    await until(ticker.ready, "the ticker is ready")
    relay = await system.unready_replica("outbox", **as_user(broker, "relay"))
    await until(relay.ready, "the relay is ready")
    (tmp_path / "events.json").write_text(json.dumps(as_record(message(at=NOW))))

    await succeeds(system, "publish", str(tmp_path / "events.json"), **as_user(broker, "publisher"))
    async with KafkaProducer.open(KafkaSettings(**broker.sasl(sasl_username="publisher"))) as producer:
        await producer.publish(system.topic, [(b"c-1", b"poison")])
    await until(lambda: _is_expired(system), "a tick has let the deadline pass")
    await until(lambda: _counts(replica, "conversation_dead_letters_total", 1), "the dead letter is counted")

    await until(lambda: _counts(relay, "conversation_outbox_published_total", 2), "both transitions are published")

    operator = as_user(broker, "operator")
    listed = json.loads(await succeeds(system, "dead-letters", "list", "--json", **operator))
    await succeeds(system, "dead-letters", "replay", "--yes", **operator)
    await succeeds(system, "offsets", "show", **operator)
    await succeeds(system, "prune", "--yes", **operator)
    assert "✗" not in await succeeds(system, "doctor", **operator)
    await succeeds(system, "conversation", "forget", "c-1", "--yes", **operator)
    await succeeds(system, "what-if", "--source", "topic", "--policy", "pending_ttl=1h", **operator)
    assert await replica.count("conversation_offset_commits_total", result="error") == 0
    assert [await process.stop() for process in system.replicas] == [0, 0, 0]
    await succeeds(system, "offsets", "set", system.topic, "0", "end", "--yes", **operator)
    assert listed["reason"] == "invalid_json"


async def _is_expired(group: Group) -> bool:
    return bool(await group.rows("SELECT 1 FROM conversation WHERE status = 'expired'"))


async def _counts(replica: Replica, name: str, value: float) -> bool:
    return await replica.count(name) == value


async def said_by_run(group: Group, **settings: str) -> tuple[int, str]:
    """The exit code and the error of a replica that cannot start."""
    code, _, err = await command(group, "run", CONSUMER_HTTP__PORT="0", **settings)
    assert "Traceback" not in err
    return code, err


@pytest.mark.parametrize("acl", OF_REPLICA, ids=lambda acl: f"{acl.operation} {acl.name}")
async def test_each_acl_of_a_replica_is_needed(broker: SecureBroker, system: Group, acl: Acl) -> None:
    await remove(broker.admin, acl)
    try:
        code, said = await said_by_run(system, **as_user(broker, "consumer"))
    finally:
        await add(broker.admin, acl)

    assert code in (1, 2)
    assert acl.name in said
    assert "CONSUMER_KAFKA__" in said or "this user may not describe it" in said


def test_the_acls_alter_nothing() -> None:
    assert {acl.operation for acl in ACLS if acl.principal != "User:administrator"} <= {
        "Read",
        "Write",
        "Describe",
        "DescribeConfigs",
    }


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    started = PostgresServer()
    yield started
    started.stop()


@pytest.fixture
async def watched(broker: SecureBroker, server: PostgresServer, tmp_path: Path) -> AsyncIterator[Group]:
    """Topics, and a database of a server that may be restarted, with a password in its URL."""
    url = server.dsn.replace("@", f":{SECRETS['database']}@")
    await asyncio.to_thread(migrations.upgrade, url)
    await execute(url, f"ALTER TABLE conversation_event ADD CHECK (actor <> '{CANARIES['refused']}')")
    group = Group(KafkaSettings(**broker.sasl(session_timeout_seconds=3)), url, tmp_path)
    await succeeds(group, "topics", "--partitions", "1", **as_user(broker, "administrator"))
    yield group
    for replica in group.replicas:
        await replica.stop(signal.SIGKILL)
    await delete(broker.admin.bootstrap_servers, *TOPICS)


def records(topic: str) -> list[Record]:
    """Valid, invalid and refused ones, with a canary wherever a producer may put something."""
    valid = as_record(message(at=NOW)) | {"extension": CANARIES["extension"]}
    valid["data"] = {**valid["data"], "text": CANARIES["text"]}
    closing = as_record(close(at=NOW, actor=CANARIES["actor"], reason=CANARIES["reason"]))
    wrong_author = as_record(message(at=NOW, event_id="a")) | {"data": {"author": CANARIES["author"]}}
    wrong_status = as_record(close(at=NOW, event_id="b"))
    wrong_status["data"] = {**wrong_status["data"], "status": CANARIES["status"]}
    wrong_subject = as_record(message(at=NOW, event_id="c")) | {"subject": CANARIES["subject"]}
    refused = as_record(close(at=NOW, event_id="d", actor=CANARIES["refused"], reason=CANARIES["reason"]))
    documents = (valid, closing, wrong_author, wrong_status, wrong_subject, refused)
    bodies = [*(json.dumps(document).encode() for document in documents), f"not JSON {CANARIES['body']}".encode()]
    headers = (("x-note", CANARIES["header"].encode()),)
    return [Record(topic, 0, 0, 0, b"c-1", body, headers) for body in bodies]


async def pages_of(replica: Replica) -> str:
    """All that a replica tells over HTTP."""
    html = await asyncio.to_thread(_status_page, replica)
    return html + "".join([(await replica.get(path))[1] for path in ("/metrics", "/status", "/readyz", "/livez")])


def _status_page(replica: Replica) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{replica.port}/status", headers={"Accept": "text/html"})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return str(answer.read().decode())


async def test_no_canary_leaves_a_replica(
    broker: SecureBroker, server: PostgresServer, watched: Group, tmp_path: Path
) -> None:
    client = broker.authority.issue(common_name="consumer").encrypted(SECRETS["key"])
    replica = await watched.replica(
        **as_user(broker, "consumer"),
        CONSUMER_KAFKA__SSL_CERTIFICATE_FILE=str(client.certificate),
        CONSUMER_KAFKA__SSL_KEY_FILE=str(client.key),
        CONSUMER_KAFKA__SSL_KEY_PASSWORD=SECRETS["key"],
        CONSUMER_LOG__LEVEL="debug",
    )
    publisher = KafkaSettings(**broker.sasl(sasl_username="publisher"))
    async with KafkaProducer.open(publisher) as producer:
        await producer.send_records(records(watched.topic))
        await watched.until_applied(7)
        shown = await pages_of(replica)
        restart = asyncio.create_task(asyncio.to_thread(server.restart, signal.SIGKILL))
        await until(lambda: _is_not_ready(replica), "the outage is noticed")
        shown += await pages_of(replica)
        await restart
        await until(replica.ready, "the outage is over")
        await execute(watched.database, "ALTER TABLE conversation_event ADD COLUMN tenant text NOT NULL DEFAULT ''")
        await execute(watched.database, "ALTER TABLE conversation_event ALTER tenant DROP DEFAULT")
        crash = as_record(close(at=NOW, conversation_id="c-2", actor=CANARIES["crash"], reason=CANARIES["reason"]))
        await producer.publish(watched.topic, [(b"c-2", json.dumps(crash).encode())])
        assert await replica.process.wait() == 1

    letters = await read_all(broker.admin, watched.kafka.dead_letter_topic)
    errors = [value.decode() for letter in letters for name, value in letter.headers if name.startswith(HEADER)]
    log = replica.log.read_text()
    assert len(letters) == 5
    assert "Traceback" in log
    for name, canary in (*CANARIES.items(), *SECRETS.items()):
        for place, text in (("log", log), ("pages", shown), ("error headers", "\n".join(errors))):
            assert canary not in text, f"{name} is in the {place}"


async def _is_not_ready(replica: Replica) -> bool:
    return (await replica.get("/readyz"))[0] == 503
