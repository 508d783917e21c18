"""What the demo shows while it runs: a live table on a terminal, a line every few seconds elsewhere."""

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table

from consumer.observability.metrics import Sample
from consumer.observability.status import ReplicaStatus, read_status

LINE_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Moment:
    """Both writers at one time. The figures of ours and of the naive writer: updates lost, events applied twice."""

    at: float
    sent: int
    status: ReplicaStatus
    ours: tuple[int, int]
    naive: tuple[int, int]
    naive_applied: int

    @classmethod
    def of(
        cls, metrics: list[Sample], *, sent: int, ours: tuple[int, int], naive: tuple[int, int], naive_applied: int
    ) -> "Moment":
        return cls(time.monotonic(), sent, read_status(metrics), ours, naive, naive_applied)


class View:
    """Steps and moments, to standard error, so that standard output is the result alone."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else 80)
        self._live: Live | None = None
        self._before: Moment | None = None
        self._line_at = 0.0

    def step(self, what: str) -> None:
        """What takes a while from now on."""
        self.console.print(f"{what} ...", style="dim")

    def note(self, what: str) -> None:
        self.console.print(what.replace("; ", "\n"), markup=False)

    def show(self, moment: Moment) -> None:
        before, self._before = self._before or moment, moment
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(_table(moment, before), refresh=True)
        elif moment.at - self._line_at > LINE_SECONDS:
            self._line_at = moment.at
            behind, rate = max(0, moment.sent - moment.status.events), moment.status.conflict_rate
            self.console.print(f"{moment.sent:,} events sent, {behind:,} not applied yet, conflict rate {rate:.2%}")

    def end_moments(self) -> None:
        """Ends the live table. Ended twice is fine."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def _table(now: Moment, before: Moment) -> Table:
    seconds = max(now.at - before.at, 1e-9)
    rate = (now.status.events - before.status.events) / seconds
    naive_rate = (now.naive_applied - before.naive_applied) / seconds
    table = Table("", "ours", "naive", title=f"{now.sent:,} events sent", width=60)
    table.add_row("events/s", f"{rate:,.0f}", f"{naive_rate:,.0f}")
    table.add_row("not applied yet", f"{max(0, now.sent - now.status.events):,}", "")
    table.add_row("conflict rate", f"{now.status.conflict_rate:.2%}", "not noticed")
    table.add_row("mean retries", f"{now.status.mean_retries:.3f}", "none")
    table.add_row("updates lost", f"{now.ours[0]:,}", f"[red]{now.naive[0]:,}")
    table.add_row("events applied twice", f"{now.ours[1]:,}", f"[red]{now.naive[1]:,}")
    return table
