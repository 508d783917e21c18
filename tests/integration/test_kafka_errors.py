"""What a wrong setting of the connection to Kafka looks like: each error names the variable to look at."""

import gc
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from consumer.errors import ConfigurationError, UnavailableError
from consumer.kafka.admin import admin, check_topics
from consumer.kafka.connection import connection_arguments
from consumer.kafka.producer import KafkaProducer
from consumer.kafka.source import KafkaSource
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.settings import KafkaSettings, WorkerSettings
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.process import free_port

TOPIC = "events"
LISTENERS = """
listeners=PLAINTEXT://127.0.0.1:{plain},SSL://127.0.0.1:{tls},SASL_PLAINTEXT://127.0.0.1:{sasl},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{plain},SSL://127.0.0.1:{tls},SASL_PLAINTEXT://127.0.0.1:{sasl}
controller.quorum.voters=1@127.0.0.1:{controller}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SSL:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_alice="secret";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
group.min.session.timeout.ms=6000
"""


class Ports(NamedTuple):
    plain: int
    tls: int
    sasl: int


class Secured(NamedTuple):
    """A broker with a port of each kind, and the certificate of its port for TLS."""

    ports: Ports
    certificate: Path

    def settings(self, port: int, **settings: Any) -> KafkaSettings:
        return KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{port}", topics=(TOPIC,), request_timeout_seconds=5, **settings
        )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    directory = tmp_path_factory.mktemp("tls")
    key, certificate, keystore = (directory / name for name in ("key.pem", "certificate.pem", "keystore.pem"))
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True)
    keystore.write_text(key.read_text() + certificate.read_text())
    ports = Ports(free_port(), free_port(), free_port())
    overrides = LISTENERS.format(**ports._asdict(), controller=free_port(), keystore=keystore)
    broker = KafkaBroker(ports.plain, overrides)
    yield Secured(ports, certificate)
    broker.stop()


@pytest.fixture
async def topics(secured: Secured) -> None:
    async with admin(secured.settings(secured.ports.plain)) as client:
        for topic in (TOPIC, "conversation.dead-letter"):
            await client.create(topic, 1, 1, {"max.message.bytes": str(2 * 2**20 if topic != TOPIC else 2**20)})


async def refusal(settings: KafkaSettings) -> str:
    """What the admin client and the producer say; both the same."""
    said = set()
    clients: list[Callable[[KafkaSettings], AbstractAsyncContextManager[object]]] = [admin, KafkaProducer.open]
    for client in clients:
        with pytest.raises(UnavailableError) as caught:
            async with client(settings):
                pass
        said.add(str(caught.value))
    (one,) = said
    return one


async def test_the_right_settings_reach_every_port(secured: Secured) -> None:
    tls = secured.settings(secured.ports.tls, security_protocol="SSL", ssl_ca_file=secured.certificate)
    sasl = secured.settings(secured.ports.sasl, **sasl_of("alice", "secret"))

    for settings in (secured.settings(secured.ports.plain), tls):
        async with admin(settings) as client:
            assert await client.cluster_id()
    async with admin(sasl):
        pass


def sasl_of(user: str, password: str, mechanism: str = "PLAIN") -> dict[str, str]:
    return {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_username": user,
        "sasl_password": password,
    }


async def test_a_broker_that_is_away(secured: Secured) -> None:
    said = await refusal(secured.settings(free_port()))

    assert "the connection is refused: check CONSUMER_KAFKA__BOOTSTRAP_SERVERS" in said


async def test_a_host_that_nobody_knows() -> None:
    said = await refusal(KafkaSettings(bootstrap_servers="kafka.invalid:9092"))

    assert said.startswith("no connection to Kafka: kafka.invalid:9092: the host name is unknown")
    assert "check CONSUMER_KAFKA__BOOTSTRAP_SERVERS" in said


async def test_a_wrong_password(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.sasl, **sasl_of("alice", "wrong-password")))

    assert "Invalid username or password: check CONSUMER_KAFKA__SASL_USERNAME and CONSUMER_KAFKA__SASL_PASS" in said
    assert "wrong-password" not in said


async def test_a_mechanism_that_the_broker_does_not_offer(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.sasl, **sasl_of("alice", "secret", "SCRAM-SHA-512")))

    assert "check CONSUMER_KAFKA__SASL_MECHANISM (SCRAM-SHA-512)" in said


async def test_an_unknown_authority(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.tls, security_protocol="SSL"))

    assert "the certificate is not trusted (self-signed certificate): check CONSUMER_KAFKA__SSL_CA_FILE" in said


async def test_a_certificate_of_another_name(secured: Secured) -> None:
    settings = secured.settings(secured.ports.tls, security_protocol="SSL", ssl_ca_file=secured.certificate)

    said = await refusal(settings.model_copy(update={"bootstrap_servers": f"localhost:{secured.ports.tls}"}))

    assert "name the brokers in CONSUMER_KAFKA__BOOTSTRAP_SERVERS as their certificates do" in said


async def test_plaintext_to_a_port_for_tls(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.tls))

    assert "CONSUMER_KAFKA__SECURITY_PROTOCOL (PLAINTEXT)" in said


async def test_plaintext_to_a_port_for_sasl(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.sasl))

    assert "the port may want TLS or SASL, check CONSUMER_KAFKA__SECURITY_PROTOCOL (PLAINTEXT)" in said


async def test_tls_to_a_port_for_plaintext(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.plain, security_protocol="SSL"))

    assert "the port may speak" in said
    assert "check CONSUMER_KAFKA__SECURITY_PROTOCOL (SSL)" in said


async def test_sasl_to_a_port_without_it(secured: Secured) -> None:
    said = await refusal(secured.settings(secured.ports.plain, **sasl_of("alice", "secret")))

    assert "CONSUMER_KAFKA__SECURITY_PROTOCOL (SASL_PLAINTEXT)" in said


def test_a_file_without_a_certificate(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    settings = KafkaSettings(security_protocol="SSL", ssl_ca_file=tmp_path / "empty.pem")

    with pytest.raises(ConfigurationError, match="CONSUMER_KAFKA__SSL_CA_FILE holds no certificate"):
        connection_arguments(settings)


@pytest.fixture
def nothing_left_open() -> Iterator[None]:
    """Clients and connections that a test has not closed say so when they are collected."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught if "AIOKafka" in str(warning.message)] == []


async def run(settings: KafkaSettings) -> None:
    async def nothing(_: object) -> None: ...

    await KafkaSource(settings, WorkerSettings(), Metrics(settings.topics), Health(), nothing).run()


@pytest.mark.usefixtures("nothing_left_open", "topics")
async def test_a_session_timeout_outside_the_bounds_of_the_brokers_is_a_setting_to_mend(secured: Secured) -> None:
    settings = secured.settings(secured.ports.plain, session_timeout_seconds=3)

    with pytest.raises(ConfigurationError, match="CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS") as caught:
        await run(settings)

    assert "group.min.session.timeout.ms" in str(caught.value)
    assert "group.max.session.timeout.ms" in str(caught.value)


@pytest.mark.usefixtures("nothing_left_open", "topics")
async def test_a_user_without_access_to_the_group_or_the_topics(secured: Secured) -> None:
    settings = secured.settings(secured.ports.sasl, **sasl_of("alice", "secret"))

    with pytest.raises(ConfigurationError, match=r"topics events, .* do not exist, or this user may not describe them"):
        await check_topics(settings)
    async with KafkaProducer.open(settings.model_copy(update=vars(secured.settings(secured.ports.plain)))) as producer:
        await producer.publish(TOPIC, [(b"k", b"v")])
    with pytest.raises(UnavailableError, match="CONSUMER_KAFKA__"):
        await run(settings)
