"""`outbox`: the relay of committed transitions."""

import asyncio

import typer

from consumer import settings as configuration
from consumer.commands.replica import relay
from consumer.observability import logs

app = typer.Typer(add_completion=False)


@app.command()
def outbox() -> None:
    """Publish committed transitions until SIGTERM or SIGINT. Several take turns; what was published is deleted."""
    settings = configuration.load()
    logs.configure(settings.log)
    asyncio.run(relay(settings))
