"""`ticker`: the reference timer producer."""

import asyncio

import typer

from consumer import settings as configuration
from consumer.commands.replica import tick
from consumer.observability import logs

app = typer.Typer(add_completion=False)


@app.command()
def ticker() -> None:
    """Emit a tick for every conversation whose deadline has passed, until SIGTERM or SIGINT."""
    settings = configuration.load()
    logs.configure(settings.log)
    asyncio.run(tick(settings))
