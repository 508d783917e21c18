"""`top`: replicas side by side, read off any /metrics."""

import time
import urllib.request
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from consumer.errors import UnavailableError
from consumer.observability.metrics import parsed
from consumer.observability.status import Status, read_status

HEADINGS = (
    "replica",
    "events/s",
    "partitions",
    "lag",
    "oldest",
    "conflict rate",
    "mean retries",
    "locked",
    "dead letters",
)


def scrape(url: str) -> Status:
    """The status of a replica. Raises `UnavailableError` where nobody answers with metrics."""
    address = url if "/" in url.removeprefix("http://").removeprefix("https://") else f"{url}/metrics"
    address = address if address.startswith(("http://", "https://")) else f"http://{address}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:  # noqa: S310 - http(s) only, see above
            return read_status(parsed(answer.read().decode()))
    except (OSError, ValueError) as error:
        raise UnavailableError(f"{address}: {error}") from error


def show(console: Console, urls: Sequence[str], interval_seconds: float, rounds: int | None) -> None:
    """Redraws every interval, `rounds` times or until interrupted."""
    before: dict[str, tuple[float, int]] = {}
    with Live(console=console, auto_refresh=False) as live:
        while rounds is None or rounds > 0:
            live.update(draw(urls, before, scrape), refresh=True)
            rounds = None if rounds is None else rounds - 1
            if rounds != 0:
                time.sleep(interval_seconds)


def draw(urls: Sequence[str], before: dict[str, tuple[float, int]], read: Callable[[str], Status]) -> Table:
    """One round; `before` remembers each replica's (time, events) for the rate."""
    table = Table(*HEADINGS)
    for url in urls:
        try:
            status = read(url)
        except UnavailableError as error:
            table.add_row(url, f"[red]{error}")
            continue
        table.add_row(url, *_cells(status, before.get(url)))
        before[url] = (time.monotonic(), status.events)
    return table


def _cells(status: Status, before: tuple[float, int] | None) -> tuple[str, ...]:
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
