"""`make demo`: watch it work on real Kafka and PostgreSQL: two replicas, competing writers, and a verdict."""

import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from tests.demo import show
from tests.stack.process import DevstackError

out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)


class Bug(StrEnum):
    VERSION = "version"
    DEDUP = "dedup"
    GUARD = "guard"
    REDECIDE = "redecide"


def main(
    seed: Annotated[int, typer.Option(help="Chooses the traffic.")] = 1,
    events: Annotated[int, typer.Option(min=1, help="How many to publish.")] = 24_000,
    seconds: Annotated[float, typer.Option(min=1, help="How long to publish.")] = 16.0,
    bug: Annotated[
        Bug | None, typer.Option("--break", help="Plant this bug into the replicas: the verdict must find it.")
    ] = None,
) -> None:
    """Two replicas and competing writers on real Kafka and PostgreSQL, and a verdict. Exit code 1 if it fails."""
    try:
        held = show.main(out, show.Plan(seed, events, seconds, bug.value if bug else None))
    except DevstackError as error:
        err.print(f"error: {error}", style="red", highlight=False, markup=False)
        raise typer.Exit(1) from None
    raise typer.Exit(0 if held else 1)


if __name__ == "__main__":
    typer.run(main)
