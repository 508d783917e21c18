"""`report`: what happened in a period, from the views for analysts. Reads, and writes nothing."""

import csv
import sys
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from consumer.commands.output import AsJson, out, print_json, print_table
from consumer.commands.period import Period, Since, Until, period
from consumer.commands.plot import PlotFile, check_plot, plot_bars
from consumer.commands.query import ask, check_schema
from consumer.lifecycle.model import RANK
from consumer.postgres.reports import ConversationReport, RaceReport
from consumer.postgres.store import PostgresStore

T = TypeVar("T")
REASONS = 20
"""Rows of the table of closings; `--json` and `--csv` have all."""
RACES = {
    "reinstated": "a customer who had written in time would have stayed expired",
    "reclassified from expired": "a close by hand would have been reported as an expiry",
    "split": "a newer message would have been closed unread",
    "late": "an old event would have changed what is newer",
    "outranked": "a close would have replaced one that ranks higher",
}
"""Race -> what would have been wrong without this service."""
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="What happened in a period. Days are UTC.")


@app.command()
def conversations(
    *, since: Since = None, until: Until = None, as_json: AsJson = False, as_csv: AsCsv = False, plot: PlotFile = None
) -> None:
    """Closings by status and reason, time to acceptance, time by status.

    Counted are the sessions closed, and those accepted, in the period. Times by status come from the history: of
    sessions whose history is pruned they are missing.
    """
    _check(as_json=as_json, as_csv=as_csv)
    check_plot(plot)
    when, report = _ask(since, until, lambda store, when: store.conversation_report(*when))
    if plot is not None:
        counts = {status: Counter[date]() for status in (str(status) for status in RANK)}
        for closings in report.closings:
            counts[closings.status][closings.day] += closings.sessions
        _plot_days(plot, f"Sessions closed {when}", counts)
    if as_json:
        print_json(_conversations_as_json(report, when))
    elif as_csv:
        _print_csv(("measure", "day", "status", "reason", "value"), _conversation_measures(report))
    else:
        _print_conversations(report, when)


@app.command()
def races(
    *, since: Since = None, until: Until = None, as_json: AsJson = False, as_csv: AsCsv = False, plot: PlotFile = None
) -> None:
    """What would have been wrong without this service, by the day on which it was decided."""
    _check(as_json=as_json, as_csv=as_csv)
    check_plot(plot)
    when, report = _ask(since, until, lambda store, when: store.race_report(*when))
    if plot is not None:
        counts = {race: Counter[date]() for race in RACES}
        for found in report.races:
            counts[found.race][found.day] += found.events
        _plot_days(plot, f"Races decided {when}", counts)
    if as_json:
        days = [found._asdict() for found in report.races]
        print_json({"from": when.since, "to": when.until, "events": report.events, "races": days})
    elif as_csv:
        _print_csv(("day", "race", "events"), report.races)
    else:
        _print_races(report, when)


def _check(*, as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise typer.BadParameter("--json or --csv, not both")


def _ask(
    since: str | None, until: str | None, query: Callable[[PostgresStore, Period], Coroutine[Any, Any, T]]
) -> tuple[Period, T]:
    async def work(store: PostgresStore) -> tuple[Period, T]:
        await check_schema(store)
        when = period(since, until, await store.now())
        return when, await query(store, when)

    return ask(work)


def _print_conversations(report: ConversationReport, when: Period) -> None:
    out.print(f"sessions {when}")
    out.print(f"{report.opened:,} opened, {report.accepted:,} accepted, {report.closed:,} closed")
    if report.median_seconds is not None and report.p90_seconds is not None:
        out.print(f"time to acceptance: median {_time(report.median_seconds)}, p90 {_time(report.p90_seconds)}")
    if not report.closed:
        return
    by_reason = Counter[tuple[str, str | None]]()
    for closings in report.closings:
        by_reason[closings.status, closings.reason] += closings.sessions
    print_table(
        None,
        ("closings", "share", "status", "reason"),
        [
            (f"{count:,}", f"{count / report.closed:.1%}", status, reason)
            for (status, reason), count in by_reason.most_common(REASONS)
        ],
    )
    if len(by_reason) > REASONS:
        out.print(f"{len(by_reason) - REASONS:,} more: --json, --csv")
    total = sum(report.seconds_by_status.values())
    print_table(
        None,
        ("time by status", "a session", "share", "all"),
        [
            (status, _time(seconds / report.closed), f"{seconds / total:.1%}" if total else "", _time(seconds))
            for status, seconds in report.seconds_by_status.items()
        ],
    )


def _print_races(report: RaceReport, when: Period) -> None:
    totals = Counter[str]()
    for found in report.races:
        totals[found.race] += found.events
    out.print(f"races {when}: {totals.total():,} of {report.events:,} events")
    print_table(
        None,
        ("events", "race", "without this service"),
        [(f"{totals[race]:,}", race, why) for race, why in RACES.items()],
    )
    days = sorted({found.day for found in report.races})
    counts = {(found.day, found.race): found.events for found in report.races}
    if days:
        short = [race.removesuffix(" from expired") for race in RACES]
        print_table(
            None, ("day", *short), [(day, *(f"{counts.get((day, race), 0):,}" for race in RACES)) for day in days]
        )


def _conversations_as_json(report: ConversationReport, when: Period) -> dict[str, Any]:
    return {
        "from": when.since,
        "to": when.until,
        "opened": report.opened,
        "accepted": report.accepted,
        "closed": report.closed,
        "seconds_to_acceptance": {"median": report.median_seconds, "p90": report.p90_seconds},
        "seconds_by_status": report.seconds_by_status,
        "closings": [closings._asdict() for closings in report.closings],
    }


def _conversation_measures(report: ConversationReport) -> Iterable[tuple[object, ...]]:
    yield "opened", None, None, None, report.opened
    yield "accepted", None, None, None, report.accepted
    yield "seconds_to_acceptance_median", None, None, None, report.median_seconds
    yield "seconds_to_acceptance_p90", None, None, None, report.p90_seconds
    for status, seconds in report.seconds_by_status.items():
        yield "seconds", None, status, None, seconds
    for day, status, reason, count in report.closings:
        yield "closed", day, status, reason, count


def _print_csv(headings: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)


def _plot_days(file: Path, title: str, counts: dict[str, Counter[date]]) -> None:
    days = sorted({day for by_day in counts.values() for day in by_day})
    groups = {name: [by_day[day] for day in days] for name, by_day in counts.items() if by_day}
    plot_bars(file, title, [str(day) for day in days], groups, "a day")


def _time(seconds: float) -> str:
    """For people: the two largest units."""
    units = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))
    rest, parts = seconds, list[str]()
    for unit, size in units:
        if rest >= size and len(parts) < 2:
            parts.append(f"{int(rest // size):,}{unit}")
            rest %= size
    return " ".join(parts) or f"{seconds:.1f}s"
