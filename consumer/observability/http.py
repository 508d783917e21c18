"""/metrics for Prometheus, /livez and /readyz for the orchestrator, /status for people.

Where there is an admin port, /metrics and /status are there and nowhere else.
"""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from consumer.errors import ConfigurationError
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics, samples
from consumer.observability.status import STYLE_HASH, as_html, as_json, read_status
from consumer.settings import HttpSettings

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": f"default-src 'none'; style-src '{STYLE_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
"""Of every answer: nothing is kept or guessed, and a page loads, runs and sends nothing."""
POLL_TIMEOUT_SECONDS = 90.0
"""Longer than a rebalance, during which nothing is polled."""


class Pages:
    """What each page says."""

    def __init__(self, metrics: Metrics, health: Health, database_answers: Callable[[], Awaitable[bool]]) -> None:
        self._metrics = metrics
        self._health = health
        self._database_answers = database_answers

    async def livez(self, _: web.Request) -> web.Response:
        alive = self._health.alive(POLL_TIMEOUT_SECONDS)
        return web.Response(
            text="ok\n" if alive else "the loop of this process stands still\n", status=200 if alive else 503
        )

    async def readyz(self, _: web.Request) -> web.Response:
        reasons = await self._not_ready()
        return web.Response(text="\n".join(reasons or ["ok"]) + "\n", status=503 if reasons else 200)

    async def status(self, request: web.Request) -> web.Response:
        """This replica only; a page for browsers, JSON for everybody else."""
        facts = read_status(samples(self._metrics.registry)), self._health, await self._not_ready()
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=as_html(*facts), content_type="text/html")
        return web.json_response(as_json(*facts))

    async def _not_ready(self) -> list[str]:
        database = [] if await self._database_answers() else ["the database does not answer"]
        return self._health.not_ready() + database


class Ports(NamedTuple):
    """Where the probes are, and where the other pages are."""

    probes: int
    admin: int


@asynccontextmanager
async def serve(
    settings: HttpSettings, metrics: Metrics, health: Health, database_answers: Callable[[], Awaitable[bool]]
) -> AsyncIterator[Ports]:
    """Serves until the end of the block."""
    pages = Pages(metrics, health, database_answers)
    probes = [web.get("/livez", pages.livez), web.get("/readyz", pages.readyz)]
    admin = [web.get("/metrics", make_aiohttp_handler(metrics.registry)), web.get("/status", pages.status)]
    async with AsyncExitStack() as stack:
        if settings.admin_port is None:
            port = await stack.enter_async_context(
                _site("CONSUMER_HTTP__PORT", settings.host, settings.port, *probes, *admin)
            )
            yield Ports(port, port)
            return
        yield Ports(
            await stack.enter_async_context(_site("CONSUMER_HTTP__PORT", settings.host, settings.port, *probes)),
            await stack.enter_async_context(
                _site("CONSUMER_HTTP__ADMIN_PORT", settings.admin_host, settings.admin_port, *admin)
            ),
        )


@asynccontextmanager
async def _site(variable: str, host: str, port: int, *routes: web.RouteDef) -> AsyncIterator[int]:
    """Raises `ConfigurationError` naming the variable of the port or of its host, if it cannot be had."""
    app = web.Application()
    app.add_routes(routes)
    app.on_response_prepare.append(_add_headers)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise ConfigurationError(f"{variable}={port}: {error.strerror}; 0 takes a free one") from error
            variable = variable.replace("PORT", "HOST")
            raise ConfigurationError(
                f"{variable}={host}: {error.strerror or error}: should be an address of this machine"
            ) from error
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def _add_headers(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.popall("Server", None)
