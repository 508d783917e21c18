"""`top`: replicas side by side, read off any /metrics."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Annotated

import aiohttp
import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from consumer.commands.output import out
from consumer.errors import UnavailableError
from consumer.observability.metrics import parsed
from consumer.observability.status import ReplicaStatus, read_status

HEADINGS = ("events/s", "parts", "lag", "oldest", "conflicts", "retries", "locked", "dead")
TIMEOUT = aiohttp.ClientTimeout(total=5)
Before = dict[str, tuple[float, int]]
"""Replica -> (time, events) of the last round, for the rate."""
app = typer.Typer(add_completion=False)


@app.command()
def top(
    urls: Annotated[list[str], typer.Argument(help="Replicas, as HOST:PORT or the URL of their /metrics.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between rounds.")] = 1.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="End after so many; default: never.")] = None,
) -> None:
    """Watch replicas: rate, partitions, lag, conflict rate, mean retries, lock escalations, dead letters.

    Exit code 1 if none of them answers in the last round.
    """
    with suppress(KeyboardInterrupt):
        raise typer.Exit(0 if asyncio.run(watch(urls, interval, rounds)) else 1)


async def watch(urls: Sequence[str], interval_seconds: float, rounds: int | None) -> bool:
    """Redraws every interval, `rounds` times or until interrupted; whether anybody answered in the last round.

    Where nobody looks at a screen, each round is printed below the one before.
    """
    before: Before = {}
    answered = False
    with Live(console=out, auto_refresh=False) if out.is_terminal else nullcontext() as live:
        while rounds is None or rounds > 0:
            last = dict(before)
            drawn = await draw(urls, before, scrape)
            answered = before != last
            if live is not None:
                live.update(drawn, refresh=True)
            else:
                out.print(drawn)
            rounds = None if rounds is None else rounds - 1
            if rounds != 0:
                await asyncio.sleep(interval_seconds)
    return answered


async def scrape(url: str) -> ReplicaStatus:
    """The status of a replica. Raises `UnavailableError` where nobody answers with metrics."""
    address = url.rstrip("/") if url.startswith(("http://", "https://")) else f"http://{url.rstrip('/')}"
    address = address if "/" in address.partition("://")[2] else f"{address}/metrics"
    try:
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT, raise_for_status=True) as session,
            session.get(address) as answer,
        ):
            text = await answer.text()
    except aiohttp.InvalidURL as error:
        raise UnavailableError(f"no answer from {url}: should be HOST:PORT or a URL") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise UnavailableError(f"no answer from {address}: {error or type(error).__name__}") from error
    try:
        return read_status(parsed(text))
    except ValueError as error:
        raise UnavailableError(f"no metrics at {address}: should be the URL of /metrics") from error


async def draw(urls: Sequence[str], before: Before, read: Callable[[str], Awaitable[ReplicaStatus]]) -> Group:
    """One round. The names of replicas are folded, never cut: their ends tell them apart."""
    errors: list[Text] = []
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("replica", overflow="fold", min_width=min(16, max(map(len, urls))))
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for url in urls:
        try:
            status = await read(url)
        except UnavailableError as error:
            errors.append(Text(str(error), style="red"))
            continue
        table.add_row(url, *_cells(status, before.get(url)))
        before[url] = (time.monotonic(), status.events)
    return Group(table, *errors)


def _cells(status: ReplicaStatus, before: tuple[float, int] | None) -> tuple[str, ...]:
    rate = (status.events - before[1]) / (time.monotonic() - before[0]) if before else 0.0
    return (
        f"{rate:,.0f}" if before else "",
        str(len(status.partitions)),
        f"{sum(p.lag_records for p in status.partitions):,}",
        f"{max((p.oldest_seconds for p in status.partitions), default=0.0):.1f} s",
        f"{status.conflict_rate:.2%}",
        f"{status.mean_retries:.3f}",
        f"{status.lock_escalations:,}",
        f"{sum(status.dead_letters.values()):,}",
    )
