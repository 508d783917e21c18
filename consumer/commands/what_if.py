"""`what-if`: what would have happened under another policy. Reads, and writes nothing."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from consumer import settings as configuration
from consumer.commands.output import AsJson, err
from consumer.commands.period import Since, Until, period
from consumer.commands.plot import PlotFile, check_plot
from consumer.commands.query import check_schema
from consumer.commands.spool import Spool
from consumer.commands.what_if_report import Result, Source, plot_result, print_result
from consumer.decoding import decode_all
from consumer.durations import duration, format_duration
from consumer.errors import ConfigurationError
from consumer.history.what_if import Comparison, HistoryReplay, LogReplay, Tally
from consumer.kafka.log_range import read_range
from consumer.lifecycle.model import Event, Policy
from consumer.postgres.store import PostgresStore
from consumer.records import Record
from consumer.settings import Settings

app = typer.Typer(add_completion=False)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STEP = 2000
Place = tuple[str, int]
"""(topic, partition)"""
Advance = Callable[[int, int, int], None]
"""Tells the progress: how much of how much is done, and how many events were decided by now."""


@app.command()
def what_if(
    *,
    since: Since = None,
    until: Until = None,
    policy: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DURATION", help="As pending_ttl=12h; may be repeated.")
    ] = None,
    source: Annotated[
        Source, typer.Option(help="The stored history, or the records that the input topics still have.")
    ] = Source.HISTORY,
    ids: Annotated[bool, typer.Option("--ids", help="List the conversations that would have ended otherwise.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="With --ids: so many at most.")] = 100,
    plot: PlotFile = None,
    as_json: AsJson = False,
) -> None:
    """What would have happened if the policy had been another one from --from on.

    Every event recorded in the period is decided again, at its own time, by the policy in force and by the changed one.
    A conversation that began before --from starts as it was then: its deadlines stand until they are renewed. With
    --source topic it starts with its first record of the period. At --to, all deadlines that have passed take effect.
    Nothing is written.
    """
    settings = configuration.load()
    in_force = settings.policy.policy
    changed = changed_policy(in_force, policy or ())
    check_plot(plot)
    result = asyncio.run(compare(settings, (in_force, changed), source, since, until, examples=limit if ids else 0))
    if plot is not None:
        plot_result(result, plot)
    print_result(result, ids=ids, as_json=as_json)


def changed_policy(policy: Policy, changes: Sequence[str]) -> Policy:
    """`policy` with changes as `pending_ttl=12h`. Raises `ConfigurationError` naming each that is none."""
    names = [field.name for field in fields(Policy)]
    if not changes:
        known = ", ".join(f"{name}={format_duration(getattr(policy, name))}" for name in names)
        raise ConfigurationError(f"say what to change with --policy NAME=DURATION; in force: {known}")
    values = {name: getattr(policy, name) for name in names}
    problems = list[str]()
    given = [change.partition("=") for change in changes]
    for number, (name, _, text) in enumerate(given):
        if name not in values:
            problems.append(f"there is no {name!r}: {_suggestion(name, names)}")
        elif name in [earlier for earlier, _, _ in given[:number]]:
            problems.append(f"{name} is given twice")
        else:
            try:
                values[name] = duration(text)
            except ConfigurationError as error:
                problems.append(f"{name}: {error}")
    if problems:
        raise ConfigurationError("\n       ".join(f"--policy: {problem}" for problem in problems))
    return Policy(**values)


def _suggestion(name: str, names: Sequence[str]) -> str:
    close = get_close_matches(name.lower().replace("-", "_"), names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


async def compare(
    settings: Settings,
    policies: tuple[Policy, Policy],
    source: Source = Source.HISTORY,
    since: str | None = None,
    until: str | None = None,
    *,
    examples: int = 0,
) -> Result:
    """Decides everything twice. The first `examples` conversations that end otherwise are kept."""
    started = time.perf_counter()
    with _progress() as advance:
        if source is Source.TOPIC:
            result = Result(source, period(since, until, datetime.now(UTC)), policies, Tally(examples))
            await _compare_log(settings, result, advance)
        else:
            async with PostgresStore.open(settings.database) as store:
                await check_schema(store)
                result = Result(source, period(since, until, await store.now()), policies, Tally(examples))
                await _compare_histories(store, result, advance)
    result.seconds = time.perf_counter() - started
    return result


async def _compare_histories(store: PostgresStore, result: Result, advance: Advance) -> None:
    comparison, tally = Comparison(*result.policies, *result.period), result.tally
    total, scanned = await store.about_how_many(), 0
    replay: HistoryReplay | None = None
    async for page in store.histories(*result.period):
        for row, recorded_at in page.rows:
            if replay is None or replay.conversation_id != row.conversation_id:
                if replay is not None:
                    replay.end()
                key = row.conversation_id
                replay = HistoryReplay(key, page.archives.get(key, ()), comparison, tally)
            replay.add(row, recorded_at)
        result.decided += len(page.rows)
        scanned += page.scanned
        advance(scanned, max(total, scanned), result.decided)
    if replay is not None:
        replay.end()


async def _compare_log(settings: Settings, result: Result, advance: Advance) -> None:
    """Reading the log is one half of the way, deciding its events the other."""
    comparison, tally = Comparison(*result.policies, *result.period), result.tally
    with Spool.open() as spool:
        events, latest = 0, dict[Place, int]()
        async for part in read_range(settings.kafka, *result.period):
            good, bad = decode_all(part.records, settings.worker.max_record_bytes)
            spool.add(dated(good, latest))
            events += len(good)
            result.dead_letters += len(bad)
            advance(part.passed, 2 * part.total, 0)
        for key, decisions in spool.conversations():
            replay = LogReplay(key, comparison, tally)
            for milliseconds, event in decisions:
                replay.add(event, EPOCH + timedelta(milliseconds=milliseconds))
                result.decided += 1
                if result.decided % STEP == 0:
                    advance(events + result.decided, 2 * events, result.decided)
            replay.end()


def dated(records: Iterable[tuple[Record, Event]], latest: dict[Place, int]) -> Iterator[tuple[int, Event]]:
    """The events with the times of their records: within a partition none before one that lies before it in the log."""
    for record, event in records:
        place = (record.topic, record.partition)
        latest[place] = max(record.timestamp, latest.get(place, 0))
        yield latest[place], event


@contextmanager
def _progress() -> Iterator[Advance]:
    """How far it is, how fast, how long it still takes: on a terminal."""
    started = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        def advance(done: int, total: int, decided: int) -> None:
            rate = decided / (time.perf_counter() - started)
            progress.update(task, completed=done, total=total, description=f"{decided:,} events, {rate:,.0f}/s")

        yield advance
