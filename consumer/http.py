"""/metrics for Prometheus, /livez and /readyz for the orchestrator."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from consumer.health import Health
from consumer.metrics import Metrics
from consumer.settings import HttpSettings

POLL_TIMEOUT_SECONDS = 90.0
"""Longer than a rebalance, during which nothing is polled."""


@asynccontextmanager
async def serve(
    settings: HttpSettings, metrics: Metrics, health: Health, database_answers: Callable[[], Awaitable[bool]]
) -> AsyncIterator[int]:
    """Serves until the end of the block; yields the port."""

    async def livez(_: web.Request) -> web.Response:
        alive = health.alive(POLL_TIMEOUT_SECONDS)
        return web.Response(text="ok\n" if alive else "Kafka has not been polled\n", status=200 if alive else 503)

    async def readyz(_: web.Request) -> web.Response:
        reasons = health.not_ready() + ([] if await database_answers() else ["the database does not answer"])
        return web.Response(text="\n".join(reasons or ["ok"]) + "\n", status=503 if reasons else 200)

    app = web.Application()
    app.router.add_get("/metrics", make_aiohttp_handler(metrics.registry))
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
