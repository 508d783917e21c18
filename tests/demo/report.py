"""The result of a run: one screen, and on request the tables behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from consumer.lifecycle.model import EVENT_KINDS, Outcome
from consumer.observability.metrics import INVALID, Sample, total
from tests.checker.ledger import Ledger, Verdict
from tests.demo.contention import Point
from tests.demo.races import RACES, Score

if TYPE_CHECKING:
    from tests.demo.demo import Options

TWO_TIMERS = 5
STORY_LINES = 30
VIEWS = {
    "conversation_report": """
        SELECT status, count(*) AS sessions, count(reclassified_from) AS reclassified,
            round(avg(seconds_pending), 2) AS pending_s, round(avg(seconds_in_progress), 2) AS progress_s,
            round(avg(seconds_idle), 2) AS idle_s
        FROM conversation_report GROUP BY status ORDER BY sessions DESC""",
    "race_report": "SELECT race, count(*) AS times FROM race_report GROUP BY race ORDER BY times DESC",
}
"""What the demo asks of the views that analysts have."""
Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the naive writer made of the same traffic, and the races, counted."""

    scores: list[Score]
    naive_lost: int
    naive_double: int
    ours_wrong_closings: int
    naive_wrong_closings: int

    @property
    def races(self) -> int:
        return sum(score.one_first + score.other_first for score in self.scores)


@dataclass(frozen=True, slots=True)
class Stream:
    """What a reader of the transition topic got, how often a relay was killed, and how many statuses it has wrong."""

    transitions: int
    repeats: int
    kills: int
    wrong: int


@dataclass(frozen=True, slots=True)
class Result:
    """All that a run came to."""

    options: "Options"
    ledger: Ledger
    metrics: list[Sample]
    comparison: Comparison
    verdicts: list[Verdict]
    stream: Stream
    views: dict[str, tuple[Sequence[str], Rows]]
    contention: list[Point]

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


def print_screen(console: Console, result: Result) -> None:
    """What was tried, what held, what the naive writer lost: at most 24 lines of 80 columns."""
    held = [verdict for verdict in result.verdicts if verdict.holds]
    sent = result.ledger.records + result.ledger.direct
    committed, conflicts, rate, mean = _figures(result.metrics)
    console.print(
        f"Tried: {sent:,} events to 2 replicas of ours, 2 concurrent writers and a lock\n"
        f"       holder, {result.comparison.races} races on purpose; a naive writer got the same.\n"
        f"Held:  {len(held)} of {len(result.verdicts)} invariants, "
        f"{sum(verdict.looked_at for verdict in held):,} facts looked at."
    )
    console.print(_sent_on(result.stream))
    console.print(_comparison(result))
    console.print(f"{conflicts} of {committed} writes lost a race: conflict rate {rate}, mean retries {mean}")
    console.print(_contention(result.contention))
    for verdict in result.verdicts:
        if not verdict.holds:
            broken = f"{verdict.invariant} BROKEN {len(verdict.violations)} times: {escape(verdict.violations[0])}"
            console.print(f"[red]{broken}", soft_wrap=True)
    console.print(_closing_sentence(result), style="bold")


def print_details(console: Console, result: Result) -> None:
    """The tables behind the screen, and the stories of what went wrong."""
    console.print(_outcomes(result.metrics), _locking(result.metrics), _races(result.comparison.scores))
    for name, (headings, rows) in result.views.items():
        table = Table(*headings, title=name)
        for row in rows:
            table.add_row(*map(str, row))
        console.print(table)
    console.print(_verdicts(result.verdicts))
    for key, lines in {verdict.violations[0]: verdict.story for verdict in result.verdicts if verdict.story}.items():
        console.print(f"The story of {escape(key)}:", style="bold red")
        console.print(*(escape(line) for line in lines[-STORY_LINES:]), sep="\n", soft_wrap=True)


async def analysts_views(database: str) -> dict[str, tuple[Sequence[str], Rows]]:
    """Name -> (headings, rows) of the views for analysts, on what the demo wrote."""
    connection = await asyncpg.connect(database)
    try:
        found = {name: await connection.fetch(sql) for name, sql in VIEWS.items()}
    finally:
        await connection.close()
    return {name: (tuple(rows[0].keys() if rows else ()), [tuple(row) for row in rows]) for name, rows in found.items()}


def _closing_sentence(result: Result) -> str:
    if not result.holds:
        return "An invariant is broken: --details tells the stories."
    lost, double = result.comparison.naive_lost, result.comparison.naive_double
    return (
        f"Nothing was lost and nothing applied twice. On the same traffic the naive writer\n"
        f"lost {lost:,} updates and applied {double:,} events twice."
    )


def _sent_on(stream: Stream) -> str:
    reader = f"has {stream.wrong:,} statuses wrong" if stream.wrong else "has every status"
    return (
        f"Sent on: {stream.transitions:,} changes of status, {stream.repeats:,} of them twice, while a relay was\n"
        f"       killed {stream.kills} times. A reader of that topic alone {reader}."
    )


def _comparison(result: Result) -> Table:
    """Ours are the checker's findings, not a promise."""
    found = {verdict.invariant: len(verdict.violations) for verdict in result.verdicts}
    comparison = result.comparison
    table = Table("", "ours", "naive")
    for what, ours, naive in (
        ("updates lost", found["no event lost"], comparison.naive_lost),
        ("events applied twice", found["one effect per event"], comparison.naive_double),
        ("closed by a human, reported as expired", comparison.ours_wrong_closings, comparison.naive_wrong_closings),
        (
            "races that came out wrong",
            sum(score.ours_wrong for score in comparison.scores),
            sum(score.naive_wrong for score in comparison.scores),
        ),
    ):
        table.add_row(what, f"{ours:,}", f"[red]{naive:,}" if naive else "0")
    return table


def _contention(points: Sequence[Point]) -> Table:
    table = Table("outside writers on 10 conversations", *(f"{point.writers}" for point in points))
    table.add_row("events/s", *(f"{point.events_per_second:,.0f}" for point in points))
    table.add_row("conflict rate", *(f"{point.conflict_rate:.1%}" for point in points))
    table.add_row("mean retries", *(f"{point.mean_retries:.2f}" for point in points))
    return table


def _races(scores: list[Score]) -> Table:
    table = Table("race", "first", "times", "first", "times", "ours wrong", "naive wrong", title="The six races")
    for s in scores:
        one, other = RACES[s.kind]
        second = (other, f"{s.other_first}") if s.kind != TWO_TIMERS else ("", "")
        naive = f"[red]{s.naive_wrong}" if s.naive_wrong else "0"
        table.add_row(f"{s.kind}", one, f"{s.one_first}", *second, f"{s.ours_wrong}", naive)
    return table


def _outcomes(metrics: list[Sample]) -> Table:
    table = Table("outcome", *EVENT_KINDS, INVALID, title="What became of the events")
    for outcome in Outcome:
        counts = [
            total(metrics, "conversation_events_total", type=kind, outcome=outcome) for kind in (*EVENT_KINDS, INVALID)
        ]
        table.add_row(outcome, *(f"{count:,.0f}" if count else "" for count in counts))
    return table


def _locking(metrics: list[Sample]) -> Table:
    escalations = total(metrics, "conversation_lock_escalations_total")
    caption = (
        f"{escalations:,.0f} conversations were locked after repeated conflicts. A tick that loses its race often "
        "finds nothing left to do: it counts as a conflict, but was not committed, so not among the retries."
    )
    headings = ("operation", "committed", "conflicts", "conflict rate", "mean retries")
    table = Table(*headings, title="Optimistic locking", caption=caption)
    for kind in EVENT_KINDS:
        table.add_row(kind, *_figures(metrics, operation=kind))
    table.add_row("all", *_figures(metrics), style="bold")
    return table


def _figures(metrics: list[Sample], **labels: str) -> tuple[str, str, str, str]:
    """Committed, conflicts, conflict rate, mean retries."""
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
        found = "[green]holds" if verdict.holds else f"[red]BROKEN[/] {len(verdict.violations)} times"
        table.add_row(verdict.invariant, f"{verdict.looked_at:,}", found)
    return table
