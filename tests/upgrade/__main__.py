"""`make upgrade-check`: an old build and today's, side by side on one group and one database, and back, under load."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from consumer.errors import ConsumerError
from tests.stack.process import say
from tests.stack.services import services
from tests.upgrade.build import install, new_build
from tests.upgrade.check import check
from tests.upgrade.judge import Result
from tests.upgrade.rollout import Plan


def main(
    old: Annotated[
        str | None, typer.Option(help="The old build: a commit or tag. Default: the last one with an older schema.")
    ] = None,
    replicas: Annotated[int, typer.Option(min=2, max=4, help="How many.")] = 3,
    rate: Annotated[int, typer.Option(min=20, help="Events published per second.")] = 400,
    hold: Annotated[float, typer.Option(min=0, help="Seconds of load after each step.")] = 5.0,
    seed: Annotated[int, typer.Option(help="Chooses the traffic.")] = 1,
) -> None:
    """Upgrades replica by replica, rolls back and upgrades again under load. Exit code 1 if anything was lost."""
    try:
        with tempfile.TemporaryDirectory(prefix="upgrade-") as scratch:
            build = install(old or None, Path(scratch))
            say(f"the old build is {build.name}")
            with services() as found:
                say(found.origin)
                result = asyncio.run(check(found, build, new_build(), Plan(replicas, rate, hold, seed)))
    except ConsumerError as error:
        say(f"error: {error}")
        raise typer.Exit(1) from None
    print_result(Console(width=None if sys.stdout.isatty() else 100, highlight=False), result)
    raise typer.Exit(0 if result.holds else 1)


def print_result(console: Console, result: Result) -> None:
    table = Table("step", "seconds", "applied", "pause", "worst partition")
    for measured in result.measured:
        step = measured.step
        pauses = (f"{pause.total_seconds():.1f} s" for pause in (measured.pause, measured.partition_pause))
        table.add_row(step.name, f"{(step.ended - step.started).total_seconds():.0f}", f"{measured.applied:,}", *pauses)
    console.print(table)
    for verdict in result.verdicts:
        state = "holds" if verdict.holds else f"BROKEN {len(verdict.violations)} times"
        console.print(f"{verdict.invariant}: {verdict.looked_at:,} looked at, {state}", markup=False)
        for line in (*verdict.violations[:5], *verdict.story):
            console.print(f"    {line}", markup=False)


if __name__ == "__main__":
    typer.run(main)
