"""`prune`: removes history older than a horizon, and nothing else.

The history is also what duplicates are known by: a record that can still be read must find its row, so the horizon
cannot be shorter than the log. By how much it is longer is how late a provider may deliver an event again without harm
if the log is read anew: the second delivery still lies in the log when the first one no longer does.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, ParamSpec, TypeVar

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from consumer import settings as configuration
from consumer.commands.output import Yes, err, moment, out
from consumer.commands.query import check_schema
from consumer.commands.signals import stop_on_signals
from consumer.durations import duration, format_duration
from consumer.errors import ConfigurationError, ConsumerError, ContentionError
from consumer.kafka.admin import RETENTION_SLACK, KafkaAdmin, admin
from consumer.postgres.store import PostgresStore
from consumer.retry import Backoff, retried

BATCH_PAGES = 128
"""A mebibyte, of some 6,000 rows: a transaction of a moment."""
BACKOFF = Backoff(0.1, 0.5)
RETRY_SECONDS = 30.0
"""How long a batch waits for whoever holds the table, an index build or another pruning."""

app = typer.Typer(add_completion=False)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PrunePlan:
    """What is to go: rows recorded before `before`, the database's now less the horizon.

    `retentions` has for each input topic how old its records may become.
    """

    horizon: timedelta
    before: datetime
    retentions: Mapping[str, timedelta]
    pages: int
    page_bytes: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What has become of it; not `whole` if it was stopped."""

    rows: int
    seconds: float
    whole: bool


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="As 30d or 720h; default: CONSUMER_PRUNE__HORIZON.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=10_000, help="Pages of the table per transaction, of some 50 rows each.")
    ] = BATCH_PAGES,
    pause: Annotated[float, typer.Option(min=0, help="Seconds of rest between two transactions.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be removed.")] = False,
    yes: Yes = False,
) -> None:
    """Remove history older than a horizon; conversations stay. It may be stopped (exit code 1) and run again."""
    if dry_run and yes:
        raise typer.BadParameter("--dry-run or --yes, not both")
    settings = configuration.load()
    horizon = duration(older_than) if older_than is not None else settings.prune.horizon

    async def work() -> bool:
        async with admin(settings.kafka) as client, PostgresStore.open(settings.database) as store:
            await check_schema(store)
            plan = await make_plan(client, store, settings.kafka.topics, horizon)
            _print_plan(plan)
            if not (yes or dry_run):
                out.print("nothing done: add --yes, or --dry-run to count the rows")
                return True
            stopping = asyncio.Event()
            stop_on_signals(stopping.set)
            done = await carry_out(store, plan, stopping, batch_pages=batch, pause_seconds=pause, dry_run=dry_run)
            _print_result(done, "to remove, counted" if dry_run else "removed")
            return done.whole

    raise typer.Exit(0 if asyncio.run(work()) else 1)


def _print_plan(plan: PrunePlan) -> None:
    out.print(f"to go: history recorded before {moment(plan.before)}, {format_duration(plan.horizon)} ago")
    out.print(f"table: {plan.pages * plan.page_bytes / 2**20:,.1f} MiB, {plan.pages:,} pages")
    for topic, retention in plan.retentions.items():
        out.print(f"{topic}: no record is older than {format_duration(retention)}", markup=False)


def _print_result(done: Pruned, what: str) -> None:
    rest = "" if done.whole else "; stopped before the end: run it again to go on"
    out.print(f"{done.rows:,} rows {what} in {done.seconds:.1f} s, {done.rows / done.seconds:,.0f} rows/s{rest}")


async def make_plan(kafka: KafkaAdmin, store: PostgresStore, topics: tuple[str, ...], horizon: timedelta) -> PrunePlan:
    """Raises `ConfigurationError` if a record that is still in the log of a topic might lose its row."""
    there = await kafka.topics()
    if missing := [topic for topic in topics if topic not in there]:
        raise ConfigurationError(f"topic {missing[0]} does not exist: check CONSUMER_KAFKA__TOPICS")
    # Other groups may feed the same database: their records need their rows as well.
    consumed = {partition.topic for partition, _ in await store.stored_offsets()} & there.keys()
    retentions = {
        topic: _checked(topic, await kafka.longest_retention(topic), horizon) for topic in sorted({*topics, *consumed})
    }
    before = await store.now() - horizon
    return PrunePlan(horizon, before, retentions, *await _through_contention(store.history_size))


def _checked(topic: str, retention: timedelta | None, horizon: timedelta) -> timedelta:
    why = "a record that is read again must find its history, or it would be applied again"
    if retention is None:
        raise ConfigurationError(
            f"{topic} keeps records without limit, so no history can be pruned: {why}. "
            "Give the topic a retention.ms, and cleanup.policy=delete"
        )
    least = format_duration(retention)
    if horizon < retention:
        raise ConfigurationError(
            f"a horizon of {format_duration(horizon)} is too short: a record of {topic} can become {least} old "
            f"(retention.ms + segment.ms + {format_duration(RETENTION_SLACK)}), and {why}. "
            f"Prune with --older-than {least} or more, or lower the topic's retention.ms or segment.ms"
        )
    return retention


async def carry_out(
    store: PostgresStore,
    plan: PrunePlan,
    stopping: asyncio.Event,
    *,
    batch_pages: int = BATCH_PAGES,
    pause_seconds: float = 0.0,
    dry_run: bool = False,
) -> Pruned:
    """Goes through the history once, a transaction for so many pages; when stopping, ends between two of them.

    The next run then removes the rest. It starts at the first page again, which costs no more than reading it.
    """
    act, started, rows, seen = (store.count_old if dry_run else store.prune), time.perf_counter(), 0, 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not err.is_terminal) as progress:
        task = progress.add_task("0 rows, pages", total=plan.pages)
        while seen < plan.pages and not stopping.is_set():
            pages = range(seen, min(seen + batch_pages, plan.pages))
            rows += await _through_contention(act, pages, plan.before)
            seen = pages.stop
            progress.update(task, completed=seen, description=f"{rows:,} rows, pages")
            if pause_seconds and seen < plan.pages:
                await _rest(pause_seconds, stopping)
    return Pruned(rows, time.perf_counter() - started, whole=seen >= plan.pages)


async def _through_contention(act: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Waits for a while for whoever holds the table. Raises `ConsumerError` if it lasts."""
    try:
        return await retried(
            lambda _: act(*args, **kwargs), ContentionError, BACKOFF, asyncio.sleep, seconds=RETRY_SECONDS
        )
    except ContentionError as error:
        raise ConsumerError("somebody holds the table conversation_event: run this again when it is free") from error


async def _rest(seconds: float, stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
