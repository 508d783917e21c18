"""What a run comes to, as tables: outcomes, conflicts and retries, races, both writers side by side, the verdict."""

import time
from dataclasses import dataclass

import asyncpg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.lifecycle.model import Kind, Outcome
from consumer.observability.metrics import INVALID, Sample, total
from consumer.observability.status import ReplicaStatus, read_status
from tests.checker.verdicts import Verdict
from tests.demo.naive import NaiveWriter
from tests.demo.races import RACES, Score

TWO_TIMERS = 5
STORY_LINES = 30
REPORTS = {
    "conversation_report": """
        SELECT status, count(*) AS sessions, count(reclassified_from) AS reclassified,
            round(avg(seconds_pending), 2) AS pending_s, round(avg(seconds_in_progress), 2) AS progress_s,
            round(avg(seconds_idle), 2) AS idle_s
        FROM conversation_report GROUP BY status ORDER BY sessions DESC""",
    "race_report": "SELECT race, count(*) AS times FROM race_report GROUP BY race ORDER BY times DESC",
}
"""What the demo asks of the views that analysts have."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A moment of the demo, of ours and of the naive writer."""

    at: float
    sent: int
    ours: ReplicaStatus
    ours_lost: int
    naive_applied: int
    naive_lost: int
    naive_double: int

    @classmethod
    def of(cls, metrics: list[Sample], sent: int, naive: NaiveWriter, lost: tuple[int, int]) -> "Scene":
        """`lost`: updates lost by ours, and by the naive writer."""
        ours_lost, naive_lost = lost
        applied = naive.acknowledged.total()
        return cls(time.monotonic(), sent, read_status(metrics), ours_lost, applied, naive_lost, naive.double_effects)

    @classmethod
    def nothing(cls) -> "Scene":
        return cls(time.monotonic(), 0, read_status([]), 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the naive writer made of the same traffic, and the races, counted."""

    scores: list[Score]
    naive_lost: int
    naive_double: int
    ours_wrong_closings: int
    naive_wrong_closings: int


def draw(scene: Scene, before: Scene) -> Table:
    """Both writers side by side, while they write."""
    seconds = max(scene.at - before.at, 1e-9)
    ours, naive = scene.ours, scene.naive_applied - before.naive_applied
    table = Table("", "ours", "naive", title=f"{scene.sent:,} events sent")
    table.add_row("events/s", f"{(ours.events - before.ours.events) / seconds:,.0f}", f"{naive / seconds:,.0f}")
    table.add_row("not applied yet", f"{max(0, scene.sent - ours.events):,}", "")
    table.add_row("conflict rate", f"{ours.conflict_rate:.2%}", "not noticed")
    table.add_row("mean retries", f"{ours.mean_retries:.3f}", "none")
    table.add_row("transitions", f"{ours.transitions:,}", "")
    table.add_row("lost updates", f"{scene.ours_lost:,}", f"[red]{scene.naive_lost:,}")
    table.add_row("double effects", "see the verdict", f"[red]{scene.naive_double:,}")
    return table


def report(console: Console, metrics: list[Sample], comparison: Comparison, verdicts: list[Verdict]) -> None:
    console.print(_outcomes(metrics))
    console.print(_races(metrics))
    console.print(_duels(comparison.scores))
    console.print(_comparison(comparison, verdicts))
    console.print(_verdicts(verdicts))
    for key, lines in {verdict.violations[0]: verdict.story for verdict in verdicts if verdict.story}.items():
        console.print(f"The story of {escape(key)}:", style="bold red")
        console.print(*(escape(line) for line in lines[-STORY_LINES:]), sep="\n", highlight=False, soft_wrap=True)


def _duels(scores: list[Score]) -> Table:
    table = Table("race", "first", "times", "first", "times", "ours wrong", "naive wrong", title="The six races")
    for s in scores:
        one, other = RACES[s.race]
        times = (
            one,
            f"{s.one_first}",
            other if s.race != TWO_TIMERS else "",
            f"{s.other_first}" if s.race != TWO_TIMERS else "",
        )
        table.add_row(f"{s.race}", *times, f"{s.ours_wrong}", f"[red]{s.naive_wrong}" if s.naive_wrong else "0")
    return table


def _comparison(comparison: Comparison, verdicts: list[Verdict]) -> Table:
    """Ours are the checker's findings, not a promise."""
    found = {verdict.invariant: str(len(verdict.violations)) for verdict in verdicts}
    table = Table("", "ours", "naive", title="The same traffic, twice")
    table.add_row("lost updates", found["no event lost"], f"[red]{comparison.naive_lost:,}")
    table.add_row("double effects", found["one effect per event"], f"[red]{comparison.naive_double:,}")
    table.add_row(
        "closed by a human, reported as expired",
        f"{comparison.ours_wrong_closings:,}",
        f"[red]{comparison.naive_wrong_closings:,}",
    )
    return table


def _outcomes(metrics: list[Sample]) -> Table:
    table = Table("outcome", *Kind, INVALID, title="What became of the events")
    for outcome in Outcome:
        counts = [total(metrics, "conversation_events_total", type=kind, outcome=outcome) for kind in (*Kind, INVALID)]
        table.add_row(outcome, *(f"{count:,.0f}" if count else "" for count in counts))
    return table


def _races(metrics: list[Sample]) -> Table:
    escalations = total(metrics, "conversation_lock_escalations_total")
    caption = f"{escalations:,.0f} conversations were locked after repeated losses"
    headings = ("operation", "committed", "conflicts", "conflict rate", "mean retries")
    table = Table(*headings, title="Optimistic locking", caption=caption)
    for kind in Kind:
        table.add_row(kind, *_figures(metrics, operation=kind))
    table.add_row("all", *_figures(metrics), style="bold")
    return table


def _figures(metrics: list[Sample], **labels: str) -> tuple[str, str, str, str]:
    committed = total(metrics, "conversation_write_attempts_total", result="committed", **labels)
    conflicts = total(metrics, "conversation_write_attempts_total", result="conflict", **labels)
    retries = total(metrics, "conversation_operation_retries_sum", **labels)
    operations = total(metrics, "conversation_operation_retries_count", **labels)
    rate, mean = _ratio(conflicts, committed + conflicts), _ratio(retries, operations)
    return f"{committed:,.0f}", f"{conflicts:,.0f}", f"{rate:.2%}", f"{mean:.3f}"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _verdicts(verdicts: list[Verdict]) -> Table:
    table = Table("invariant", "looked at", "", title="Verdict")
    for verdict in verdicts:
        broken = (
            "" if verdict.holds else f"[red]BROKEN[/] {len(verdict.violations)} times: {escape(verdict.violations[0])}"
        )
        table.add_row(verdict.invariant, f"{verdict.looked_at:,}", broken or "[green]holds")
    return table


async def print_reports(console: Console, database: str) -> None:
    """The views for analysts, on what the demo wrote."""
    connection = await asyncpg.connect(database)
    try:
        for name, sql in REPORTS.items():
            rows = await connection.fetch(sql)
            table = Table(*(rows[0].keys() if rows else ()), title=name)
            for row in rows:
                table.add_row(*(str(cell) for cell in row))
            console.print(table)
    finally:
        await connection.close()
