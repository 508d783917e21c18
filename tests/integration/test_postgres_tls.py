"""TLS to a real PostgreSQL: what `sslmode=verify-full` accepts, and what each refusal says."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from consumer.errors import ConfigurationError, UnavailableError
from consumer.postgres import migrations
from tests.conftest import opened
from tests.integration.test_connection_errors import error_at
from tests.stack.certificates import YESTERDAY, Authority, Identity
from tests.stack.database import execute
from tests.stack.tls_postgres import TlsPostgresServer

VARIABLE = "CONSUMER_DATABASE__URL"


class Tls(NamedTuple):
    server: TlsPostgresServer
    authority: Authority
    stranger: Authority

    def url(self, user: str = "encrypted:right", host: str = "localhost", authority: Authority | None = None) -> str:
        root = (authority or self.authority).certificate
        return f"postgresql://{user}@{host}:{self.server.port}/postgres?sslmode=verify-full&sslrootcert={root}"

    def certified(self, client: Identity, password: str = "") -> str:
        files = f"&sslcert={client.certificate}&sslkey={client.key}"
        return self.url("certified") + files + (f"&sslpassword={password}" if password else "")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tls]:
    directory = tmp_path_factory.mktemp("tls")
    authority, stranger = Authority(directory), Authority(directory, "stranger")
    server = TlsPostgresServer(authority)
    try:
        for statement in ("CREATE ROLE encrypted LOGIN SUPERUSER PASSWORD 'right'", "CREATE ROLE certified LOGIN"):
            asyncio.run(execute(server.dsn, statement))
        yield Tls(server, authority, stranger)
    finally:
        server.stop()


async def connects(url: str) -> bool:
    async with opened(url) as store, store._connection("load") as connection:
        query = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        return bool(await connection.fetchval(query))


async def test_the_hostname_is_verified(tls: Tls) -> None:
    assert await connects(tls.url())


async def test_migrations_run_over_tls(tls: Tls) -> None:
    assert await asyncio.to_thread(migrations.upgrade, tls.url()) == migrations.head()


async def test_a_client_certificate_takes_the_place_of_a_password(tls: Tls) -> None:
    assert await connects(tls.certified(tls.authority.issue(common_name="certified")))


async def test_the_key_of_a_client_certificate_may_be_encrypted(tls: Tls) -> None:
    client = tls.authority.issue(common_name="certified").encrypted("canary-4711")

    assert await connects(tls.certified(client, "canary-4711"))


async def test_another_authority_is_refused(tls: Tls) -> None:
    said = await refusal(tls.url(authority=tls.stranger))

    assert "its certificate is not accepted" in said
    assert f"check host and sslrootcert in {VARIABLE}" in said


async def test_another_host_is_refused(tls: Tls) -> None:
    said = await refusal(tls.url(host="127.0.0.1"))

    assert "IP address mismatch, certificate is not valid for '127.0.0.1'" in said
    assert f"check host and sslrootcert in {VARIABLE}" in said


async def test_plaintext_is_refused_by_the_server(tls: Tls) -> None:
    said = await refusal(tls.url().partition("?")[0] + "?sslmode=disable")

    assert "no encryption" in said
    assert f"check user and sslmode in {VARIABLE}" in said


async def test_a_wrong_password_is_not_repeated(tls: Tls) -> None:
    said = await refusal(tls.url("encrypted:canary-4711"))

    assert f"check user and password in {VARIABLE}" in said


async def test_no_client_certificate_is_refused(tls: Tls) -> None:
    said = await refusal(tls.url("certified"))

    assert "requires a valid client certificate" in said
    assert VARIABLE in said


@pytest.mark.parametrize("kind", ["of another authority", "out of date"])
async def test_a_client_certificate_that_the_server_does_not_accept(tls: Tls, kind: str) -> None:
    issuer = tls.stranger if kind == "of another authority" else tls.authority
    client = issuer.issue(common_name="certified", not_after=YESTERDAY if kind == "out of date" else None)

    error = await error_at(tls.certified(client))

    assert isinstance(error, UnavailableError)
    assert f"it may refuse the client's certificate, which its log would say: check sslcert in {VARIABLE}" in str(error)


async def test_a_wrong_password_of_a_key_is_not_repeated(tls: Tls, tmp_path: Path) -> None:
    client = Authority(tmp_path).issue(common_name="certified").encrypted("right")

    said = await refusal(tls.certified(client, "canary-4711"))

    assert VARIABLE in said


async def refusal(url: str) -> str:
    error = await error_at(url)
    assert isinstance(error, ConfigurationError)
    assert "canary" not in str(error)
    return str(error)
