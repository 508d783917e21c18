"""`run`: one replica of the consumer."""

import asyncio

import typer

from consumer import settings as configuration
from consumer.commands.replica import consume
from consumer.observability import logs

app = typer.Typer(add_completion=False)


@app.command()
def run() -> None:
    """Consume: apply events until SIGTERM or SIGINT. A second signal ends at once; nothing is lost by it."""
    settings = configuration.load()
    logs.configure(settings.log)
    asyncio.run(consume(settings))
