"""/metrics for Prometheus, /livez and /readyz for the orchestrator, /status for people."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from consumer.errors import ConfigurationError
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics, samples
from consumer.observability.status import as_html, as_json, read_status
from consumer.settings import HttpSettings

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
        return web.Response(text="ok\n" if alive else "Kafka has not been polled\n", status=200 if alive else 503)

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


@asynccontextmanager
async def serve(
    settings: HttpSettings, metrics: Metrics, health: Health, database_answers: Callable[[], Awaitable[bool]]
) -> AsyncIterator[int]:
    """Serves until the end of the block; yields the port."""
    pages = Pages(metrics, health, database_answers)
    app = web.Application()
    app.router.add_get("/metrics", make_aiohttp_handler(metrics.registry))
    app.router.add_get("/livez", pages.livez)
    app.router.add_get("/readyz", pages.readyz)
    app.router.add_get("/status", pages.status)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        try:
            await site.start()
        except OSError as error:
            raise ConfigurationError(
                f"CONSUMER_HTTP__PORT={settings.port}: {error.strerror}; 0 takes a free one"
            ) from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
