"""`make demo`: see it work on real Kafka and PostgreSQL: two replicas, concurrent writers, and a verdict."""

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console

from tests.demo.demo import Options
from tests.demo.demo import main as run
from tests.demo.report import print_details, print_screen
from tests.demo.view import View
from tests.stack.process import DevstackError, say

INTERRUPTED = 130


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
    details: Annotated[bool, typer.Option("--details", help="Print the tables behind the result as well.")] = False,
) -> None:
    """Two replicas and concurrent writers on real Kafka and PostgreSQL, and a verdict. Exit code 1 if it fails."""
    console, view = Console(width=None if sys.stdout.isatty() else 80, highlight=False), View()
    try:
        result = run(view, Options(seed, events, seconds, bug.value if bug else None))
        if details:
            print_details(console, result)
        print_screen(console, result)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(1) from None
    except DevstackError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    finally:
        view.end_moments()
    raise typer.Exit(0 if result.holds else 1)


if __name__ == "__main__":
    typer.run(main)
