"""The pages of a process: which port has which, and what every answer says to browsers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest

from consumer.errors import ConfigurationError
from consumer.observability.health import Health
from consumer.observability.http import Ports, serve
from consumer.observability.metrics import Metrics
from consumer.observability.status import STYLE_HASH
from consumer.settings import HttpSettings

PROBES = ("/livez", "/readyz")
ADMIN = ("/metrics", "/status")


@asynccontextmanager
async def pages(**settings: str | int) -> AsyncIterator[tuple[Ports, aiohttp.ClientSession]]:
    async def answers() -> bool:
        return True

    defaults = {"host": "127.0.0.1", "port": 0}
    async with (
        serve(HttpSettings(**{**defaults, **settings}), Metrics(), Health(joined=True), answers) as ports,
        aiohttp.ClientSession() as client,
    ):
        yield ports, client


async def codes(client: aiohttp.ClientSession, port: int) -> dict[str, int]:
    found = {}
    for path in (*PROBES, *ADMIN):
        async with client.get(f"http://127.0.0.1:{port}{path}") as answer:
            found[path] = answer.status
    return found


async def test_one_port_has_all_pages() -> None:
    async with pages() as (ports, client):
        assert ports.probes == ports.admin
        assert set((await codes(client, ports.probes)).values()) == {200}


async def test_an_admin_port_takes_metrics_and_status_with_it() -> None:
    async with pages(admin_port=0) as (ports, client):
        assert await codes(client, ports.probes) == dict.fromkeys(PROBES, 200) | dict.fromkeys(ADMIN, 404)
        assert await codes(client, ports.admin) == dict.fromkeys(PROBES, 404) | dict.fromkeys(ADMIN, 200)


@pytest.mark.parametrize("variable", ["CONSUMER_HTTP__PORT", "CONSUMER_HTTP__ADMIN_PORT"])
async def test_a_port_that_is_taken_is_named(variable: str) -> None:
    async with pages() as (taken, _):
        mine: dict[str, str | int] = {variable.removeprefix("CONSUMER_HTTP__").lower(): taken.probes}
        with pytest.raises(ConfigurationError, match=f"{variable}={taken.probes}: .*in use"):
            async with pages(**mine):
                pass


@pytest.mark.parametrize("host", ["192.0.2.1", "nowhere.invalid"])
@pytest.mark.parametrize("variable", ["host", "admin_host"])
async def test_a_host_that_is_not_this_machine_is_named(variable: str, host: str) -> None:
    settings: dict[str, str | int] = {"admin_port": 0, variable: host}

    with pytest.raises(ConfigurationError, match=f"CONSUMER_HTTP__{variable.upper()}={host}: .* of this machine"):
        async with pages(**settings):
            pass


@pytest.mark.parametrize("path", [*PROBES, *ADMIN, "/nothing"])
async def test_every_answer_is_neither_kept_nor_guessed_nor_framed(path: str) -> None:
    async with pages() as (ports, client), client.get(f"http://127.0.0.1:{ports.probes}{path}") as answer:
        headers = answer.headers

    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "Server" not in headers


async def test_the_page_has_its_own_style_and_nothing_else() -> None:
    accept = {"Accept": "text/html"}
    async with (
        pages() as (ports, client),
        client.get(f"http://127.0.0.1:{ports.probes}/status", headers=accept) as answer,
    ):
        policy, text = answer.headers["Content-Security-Policy"], await answer.text()

    assert policy.startswith(f"default-src 'none'; style-src '{STYLE_HASH}';")
    assert text.count("<style>") == 1
    assert not any(word in text for word in ("style=", "<script", "<link", "<img", "http"))


@pytest.mark.parametrize("path", ["/debug", "/config", "/", "/metrics/../config"])
async def test_there_is_no_other_page(path: str) -> None:
    async with pages() as (ports, client), client.get(f"http://127.0.0.1:{ports.probes}{path}") as answer:
        assert answer.status == 404
