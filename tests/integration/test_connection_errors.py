"""A database that cannot be used: the error says what the server said, and which setting to look at."""

import asyncio
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.errors import ConfigurationError, ConsumerError, UnavailableError
from consumer.postgres import migrations
from tests.conftest import opened
from tests.stack.database import execute
from tests.stack.postgres_server import USER, PostgresServer
from tests.stack.programs import find
from tests.stack.refusing_server import refusing_server

HBA = f"""
host all {USER} 127.0.0.1/32 trust
host all careful 127.0.0.1/32 scram-sha-256
hostssl all encrypted 127.0.0.1/32 trust
"""
VARIABLE = "CONSUMER_DATABASE__URL"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    started = PostgresServer()
    try:
        (started.directory / "data" / "pg_hba.conf").write_text(HBA)
        for statement in ("CREATE ROLE careful LOGIN PASSWORD 'right'", "CREATE ROLE encrypted LOGIN"):
            asyncio.run(execute(started.dsn, statement))
        started.restart()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of `somewhere.example`, signed by itself, with its key."""
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def other_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Has not signed the certificate, though it is called the same."""
    return self_signed(tmp_path_factory.mktemp("tls"))


def self_signed(directory: Path) -> Path:
    openssl = find("openssl")
    assert openssl
    pem, key = directory / "server.pem", directory / "server.key"
    subject = ["-subj", "/CN=somewhere.example", "-addext", "subjectAltName=DNS:somewhere.example"]
    made = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject, "-keyout", str(key), "-out", str(pem)]
    subprocess.run(made, check=True, capture_output=True)
    pem.write_text(pem.read_text() + key.read_text())
    return pem


async def error_at(url: str) -> ConsumerError:
    async with opened(url) as store:
        with pytest.raises(ConsumerError) as caught:
            await store.now()
        assert not await store.answers()
    return caught.value


def server_tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


class TestConfiguration:
    async def test_a_wrong_password_is_told_without_showing_it(self, server: PostgresServer) -> None:
        error = await error_at(f"postgresql://careful:canary-4711@127.0.0.1:{server.port}/postgres")

        assert isinstance(error, ConfigurationError)
        assert 'password authentication failed for user "careful"' in str(error)
        assert f"check user and password in {VARIABLE}" in str(error)
        assert "canary" not in str(error)

    async def test_an_unknown_database_is_named(self, server: PostgresServer) -> None:
        error = await error_at(f"postgresql://{USER}@127.0.0.1:{server.port}/nowhere")

        assert isinstance(error, ConfigurationError)
        assert 'database "nowhere" does not exist' in str(error)
        assert VARIABLE in str(error)

    async def test_plaintext_to_a_server_that_asks_for_tls_names_sslmode(self, server: PostgresServer) -> None:
        error = await error_at(f"postgresql://encrypted@127.0.0.1:{server.port}/postgres")

        assert isinstance(error, ConfigurationError)
        assert "no pg_hba.conf entry" in str(error)
        assert "no encryption" in str(error)
        assert f"sslmode in {VARIABLE}" in str(error)

    async def test_a_server_without_tls_is_told_from_one_that_is_away(self, server: PostgresServer) -> None:
        error = await error_at(f"postgresql://{USER}@127.0.0.1:{server.port}/postgres?sslmode=require")

        assert isinstance(error, ConfigurationError)
        assert f"does not speak TLS: check sslmode in {VARIABLE}" in str(error)

    async def test_an_unknown_authority_names_the_setting_of_the_authority(
        self, certificate: Path, other_authority: Path
    ) -> None:
        async with refusing_server("57P03", "never said", server_tls(certificate)) as port:
            error = await error_at(f"postgresql://u@127.0.0.1:{port}/d?sslmode=verify-ca&sslrootcert={other_authority}")

        assert isinstance(error, ConfigurationError)
        assert "certificate is not accepted" in str(error)
        assert "sslrootcert" in str(error)

    async def test_a_certificate_of_another_host_names_the_host(self, certificate: Path) -> None:
        async with refusing_server("57P03", "never said", server_tls(certificate)) as port:
            error = await error_at(f"postgresql://u@localhost:{port}/d?sslmode=verify-full&sslrootcert={certificate}")

        assert isinstance(error, ConfigurationError)
        assert "Hostname mismatch" in str(error)
        assert f"check host and sslrootcert in {VARIABLE}" in str(error)

    async def test_a_certificate_file_that_is_not_there_is_no_outage(self) -> None:
        error = await error_at("postgresql://u@127.0.0.1:1/d?sslmode=verify-full&sslrootcert=/nowhere.crt")

        assert isinstance(error, ConfigurationError)
        assert f"a file that {VARIABLE} names does not exist" in str(error)

    @pytest.mark.parametrize(
        ("message", "remedy"),
        [
            ("unsupported startup parameter: search_path", "add it to PgBouncer's ignore_startup_parameters"),
            ("no such database: d", "add it to PgBouncer's [databases]"),
            ("SASL authentication failed", f"check user and password in {VARIABLE}, and PgBouncer's auth_file"),
            ('database "d" does not exist', f"create the database, or check {VARIABLE}"),
            ("no such user: u", "add it to PgBouncer's auth_file"),
        ],
    )
    async def test_what_a_pooler_refuses_is_mended_there(self, message: str, remedy: str) -> None:
        async with refusing_server("08P01", message) as port:
            error = await error_at(f"postgresql://u@127.0.0.1:{port}/d")

        assert isinstance(error, ConfigurationError)
        assert f"{message} (SQLSTATE 08P01): {remedy}" in str(error)
        assert VARIABLE in str(error)

    async def test_migrating_tells_the_same(self, server: PostgresServer) -> None:
        with pytest.raises(ConfigurationError, match='database "nowhere" does not exist'):
            await asyncio.to_thread(migrations.upgrade, f"postgresql://{USER}@127.0.0.1:{server.port}/nowhere")


class TestOutages:
    async def test_a_server_that_is_away_is_named_with_the_variable(self) -> None:
        error = await error_at("postgresql://u:canary-4711@127.0.0.1:1/d")

        assert isinstance(error, UnavailableError)
        assert "PostgreSQL at 127.0.0.1:1: Connection refused: check the server" in str(error)
        assert VARIABLE in str(error)
        assert "canary" not in str(error)

    async def test_a_name_that_cannot_be_resolved_is_named(self) -> None:
        error = await error_at("postgresql://u@nowhere.invalid/d")

        assert isinstance(error, UnavailableError)
        assert "PostgreSQL at nowhere.invalid" in str(error)

    async def test_a_server_that_starts_up_says_so(self) -> None:
        async with refusing_server("57P03", "the database system is starting up") as port:
            error = await error_at(f"postgresql://u@127.0.0.1:{port}/d")

        assert isinstance(error, UnavailableError)
        assert "the database system is starting up" in str(error)

    async def test_a_server_without_room_is_an_outage(self) -> None:
        async with refusing_server("53300", "sorry, too many clients already") as port:
            error = await error_at(f"postgresql://u@127.0.0.1:{port}/d")

        assert isinstance(error, UnavailableError)
        assert "too many clients" in str(error)

    async def test_a_pooler_without_a_server_is_an_outage(self) -> None:
        async with refusing_server("08P01", "pgbouncer cannot connect to server") as port:
            error = await error_at(f"postgresql://u@127.0.0.1:{port}/d")

        assert isinstance(error, UnavailableError)
        assert "pgbouncer cannot connect to server" in str(error)
