"""TLS and SASL against a real broker: each way in works, and each that does not says which variable to look at."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from consumer.errors import ConfigurationError, UnavailableError
from consumer.kafka.admin import admin
from consumer.kafka.connection import connection_arguments
from consumer.kafka.producer import KafkaProducer
from consumer.settings import KafkaSettings
from tests.stack.certificates import YESTERDAY, Authority
from tests.stack.secure_broker import SecureBroker, secure_broker

PROVIDER = """
import pathlib
from tests.stack.secure_broker import signed_token

calls = 0


def key():
    return (pathlib.Path(__file__).parent / "issuer.key").read_bytes()


def token():
    global calls
    calls += 1
    return signed_token(key())


async def token_later():
    return signed_token(key())


def expired_token():
    return signed_token(key(), lifetime_seconds=-100)


def issuer_is_away():
    raise OSError("the issuer does not answer")


def nothing():
    return None


not_callable = "a token"
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureBroker]:
    with secure_broker(tmp_path_factory.mktemp("tls")) as started:
        yield started


@pytest.fixture
def provider(broker: SecureBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module with functions for the setting."""
    (tmp_path / "tokens.py").write_text(PROVIDER)
    (tmp_path / "issuer.key").write_bytes(broker.issuer.private_key)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "tokens"
    sys.modules.pop("tokens", None)


async def cluster_id(**settings: Any) -> str:
    async with admin(KafkaSettings(**settings)) as client:
        return await client.cluster_id()


async def refusal(**settings: Any) -> str:
    with pytest.raises(UnavailableError) as caught:
        await cluster_id(**settings)
    return str(caught.value)


class TestWaysIn:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    async def test_a_password_over_tls(self, broker: SecureBroker, mechanism: str) -> None:
        assert await cluster_id(**broker.sasl(mechanism))

    async def test_a_client_certificate(self, broker: SecureBroker) -> None:
        client = broker.authority.issue(common_name="consumer")

        assert await cluster_id(**broker.tls(ssl_certificate_file=client.certificate, ssl_key_file=client.key))

    async def test_a_client_certificate_with_an_encrypted_key(self, broker: SecureBroker) -> None:
        client = broker.authority.issue(common_name="consumer").encrypted("canary-4711")
        files: dict[str, Any] = {"ssl_certificate_file": client.certificate, "ssl_key_file": client.key}

        assert await cluster_id(**broker.tls(**files, ssl_key_password="canary-4711"))

    @pytest.mark.parametrize("function", ["token", "token_later"])
    async def test_a_signed_token(self, broker: SecureBroker, provider: str, function: str) -> None:
        name = f"{provider}:{function}"

        assert await cluster_id(**broker.sasl("OAUTHBEARER", sasl_token_provider=name))

    async def test_a_token_is_asked_for_on_each_connection(self, broker: SecureBroker, provider: str) -> None:
        settings = broker.sasl("OAUTHBEARER", sasl_token_provider=f"{provider}:token")
        await cluster_id(**settings)
        first = sys.modules[provider].calls

        await cluster_id(**settings)

        assert sys.modules[provider].calls > first > 0


class TestServersRefused:
    async def test_a_certificate_of_another_host(self, broker: SecureBroker) -> None:
        said = await refusal(**broker.tls("OTHERHOST"))

        assert "certificate is not valid for 'localhost'" in said
        assert "name the brokers in CONSUMER_KAFKA__BOOTSTRAP_SERVERS as their certificates do" in said

    async def test_a_certificate_that_is_out_of_date(self, broker: SecureBroker) -> None:
        said = await refusal(**broker.tls("EXPIRED"))

        assert "certificate has expired: renew the certificate of the broker, or check this machine's clock" in said

    @pytest.mark.parametrize("authority", ["another", "the system's"])
    async def test_an_unknown_authority(self, broker: SecureBroker, authority: str) -> None:
        file = broker.stranger.certificate if authority == "another" else None

        said = await refusal(**broker.sasl(ssl_ca_file=file))

        assert "the certificate is not trusted" in said
        assert "check CONSUMER_KAFKA__SSL_CA_FILE" in said

    async def test_no_password_is_sent_to_a_server_that_is_not_trusted(self, broker: SecureBroker) -> None:
        said = await refusal(**broker.sasl("PLAIN", bootstrap_servers=broker.address("OTHERHOST")))

        assert "certificate is not valid" in said


class TestClientsRefused:
    @pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
    async def test_a_wrong_password(self, broker: SecureBroker, mechanism: str) -> None:
        said = await refusal(**broker.sasl(mechanism, sasl_password="canary-4711"))

        assert "check CONSUMER_KAFKA__SASL_USERNAME and CONSUMER_KAFKA__SASL_PASSWORD" in said
        assert "canary" not in said

    async def test_no_client_certificate(self, broker: SecureBroker) -> None:
        said = await refusal(**broker.tls())

        assert "a client certificate is required: set CONSUMER_KAFKA__SSL_CERTIFICATE_FILE" in said

    @pytest.mark.parametrize("kind", ["of another authority", "out of date"])
    async def test_a_client_certificate_that_the_broker_does_not_accept(self, broker: SecureBroker, kind: str) -> None:
        issuer = broker.stranger if kind == "of another authority" else broker.authority
        client = issuer.issue(common_name="consumer", not_after=YESTERDAY if kind == "out of date" else None)

        said = await refusal(**broker.tls(ssl_certificate_file=client.certificate, ssl_key_file=client.key))

        assert "the broker refuses the client's certificate" in said
        assert "check authority and dates of the one in CONSUMER_KAFKA__SSL_CERTIFICATE_FILE" in said

    async def test_a_token_that_is_out_of_date(self, broker: SecureBroker, provider: str) -> None:
        name = f"{provider}:expired_token"

        said = await refusal(**broker.sasl("OAUTHBEARER", sasl_token_provider=name))

        assert "the broker refuses the token" in said
        assert f"check the token of CONSUMER_KAFKA__SASL_TOKEN_PROVIDER ({name})" in said

    @pytest.mark.parametrize(
        ("function", "why"),
        [
            ("issuer_is_away", "raised OSError: the issuer does not answer"),
            ("nothing", "returned no token but NoneType"),
        ],
    )
    async def test_a_provider_without_a_token(
        self, broker: SecureBroker, provider: str, function: str, why: str
    ) -> None:
        settings = KafkaSettings(**broker.sasl("OAUTHBEARER", sasl_token_provider=f"{provider}:{function}"))

        for client in (admin, KafkaProducer.open):
            with pytest.raises(UnavailableError, match=why) as caught:
                async with client(settings):
                    pass
            assert "check CONSUMER_KAFKA__SASL_TOKEN_PROVIDER" in str(caught.value)

    @pytest.mark.parametrize("security", [{}, {"security_protocol": "SASL_PLAINTEXT"}])
    async def test_plaintext_to_a_port_for_tls(self, broker: SecureBroker, security: dict[str, str]) -> None:
        settings = {"security_protocol": "PLAINTEXT"} if not security else broker.sasl(ssl_ca_file=None, **security)

        said = await refusal(**settings | {"bootstrap_servers": broker.address("SASL")})

        assert "the port may want TLS or SASL, check CONSUMER_KAFKA__SECURITY_PROTOCOL" in said


class TestSettings:
    @pytest.mark.parametrize("password", [None, "canary-4711"])
    def test_an_encrypted_key_names_the_variable_of_its_password(self, tmp_path: Path, password: str | None) -> None:
        client = Authority(tmp_path).issue(common_name="consumer").encrypted("right")
        settings = KafkaSettings(
            security_protocol="SSL",
            ssl_certificate_file=client.certificate,
            ssl_key_file=client.key,
            ssl_key_password=password,
        )

        with pytest.raises(ConfigurationError, match="CONSUMER_KAFKA__SSL_KEY_PASSWORD") as caught:
            connection_arguments(settings)

        assert "canary" not in str(caught.value)

    def test_a_key_of_another_certificate_names_both_files(self, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        mine, other = authority.issue(common_name="a"), authority.issue(common_name="b")
        settings = KafkaSettings(security_protocol="SSL", ssl_certificate_file=mine.certificate, ssl_key_file=other.key)

        with pytest.raises(ConfigurationError, match="SSL_CERTIFICATE_FILE and CONSUMER_KAFKA__SSL_KEY_FILE"):
            connection_arguments(settings)

    @pytest.mark.parametrize(
        ("name", "why"),
        [
            ("no_such_module:token", "no_such_module cannot be imported"),
            ("json:no_such_function", "json has no function no_such_function"),
            ("json:__name__", "json has no function __name__"),
        ],
    )
    def test_a_provider_that_is_not_there_is_a_usage_error(self, name: str, why: str) -> None:
        settings = KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", sasl_token_provider=name)

        with pytest.raises(ConfigurationError, match=why) as caught:
            connection_arguments(settings)

        assert f"CONSUMER_KAFKA__SASL_TOKEN_PROVIDER={name}" in str(caught.value)

    @pytest.mark.parametrize(
        ("settings", "why"),
        [
            (
                {"security_protocol": "SASL_SSL"},
                "SECURITY_PROTOCOL=SASL_SSL needs CONSUMER_KAFKA__SASL_USERNAME and CONSUMER_KAFKA__SASL",
            ),
            (
                {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
                "SASL_MECHANISM=OAUTHBEARER needs CONSUMER_KAFKA__SASL_TOKEN_PROVIDER",
            ),
            ({"sasl_token_provider": "no-colon"}, "sasl_token_provider"),
            ({"sasl_username": "me", "sasl_password": "x"}, "makes no use of CONSUMER_KAFKA__SASL_"),
            ({"ssl_ca_file": __file__}, "makes no use of CONSUMER_KAFKA__SSL_"),
            (
                {"security_protocol": "SSL", "ssl_key_file": __file__},
                "SSL_KEY_FILE needs CONSUMER_KAFKA__SSL_CERTIFICATE_FILE",
            ),
        ],
    )
    def test_settings_that_would_be_without_effect_are_refused(self, settings: dict[str, str], why: str) -> None:
        with pytest.raises(ValidationError, match=why):
            KafkaSettings(**settings)
