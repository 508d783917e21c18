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
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from consumer.errors import ConfigurationError, ConsumerError, ContentionError
from consumer.kafka.admin import RETENTION_SLACK, KafkaAdmin
from consumer.postgres.store import PostgresStore
from consumer.settings import spelled

BATCH_PAGES = 128
"""A mebibyte, of some 6,000 rows: a transaction of a moment."""
RETRY_SECONDS = 0.2
PATIENCE_SECONDS = 30.0
"""How long a batch waits for whoever holds the table, an index build or another pruning."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
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


async def make_plan(kafka: KafkaAdmin, store: PostgresStore, topics: tuple[str, ...], horizon: timedelta) -> Plan:
    """Raises `ConfigurationError` if a record that is still in the log of a topic might lose its row."""
    there = await kafka.topics()
    if missing := [topic for topic in topics if topic not in there]:
        raise ConfigurationError(f"topic {missing[0]} does not exist: check CONSUMER_KAFKA__TOPICS")
    # Other groups may feed the same database: their records need their rows as well.
    consumed = {partition.topic for partition, _ in await store.stored_offsets()} & there.keys()
    retentions = {
        topic: _checked(topic, await kafka.longest_retention(topic), horizon) for topic in sorted({*topics, *consumed})
    }
    try:
        before = await store.now() - horizon
    except OverflowError:
        raise ConfigurationError("the horizon lies before the year 1: choose a shorter one") from None
    return Plan(horizon, before, retentions, *await _patiently(store.history_size))


def _checked(topic: str, retention: timedelta | None, horizon: timedelta) -> timedelta:
    why = "a record that is read again must find its history, or it would be applied again"
    if retention is None:
        raise ConfigurationError(
            f"{topic} keeps records for ever, so no history can be pruned: {why}. "
            "Give the topic a retention.ms, and cleanup.policy=delete"
        )
    if horizon < retention:
        raise ConfigurationError(
            f"a horizon of {spelled(horizon)} is too short: a record of {topic} can become {spelled(retention)} old "
            f"(retention.ms + segment.ms + {spelled(RETENTION_SLACK)}), and {why}. "
            f"Prune with --older-than {spelled(retention)} or more, or lower the topic's retention.ms or segment.ms"
        )
    return retention


async def carry_out(
    console: Console,
    store: PostgresStore,
    plan: Plan,
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
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("0 rows, pages", total=plan.pages)
        while seen < plan.pages and not stopping.is_set():
            pages = range(seen, min(seen + batch_pages, plan.pages))
            rows += await _patiently(act, pages, plan.before)
            seen = pages.stop
            progress.update(task, completed=seen, description=f"{rows:,} rows, pages")
            if pause_seconds and seen < plan.pages:
                await _rest(pause_seconds, stopping)
    return Pruned(rows, time.perf_counter() - started, whole=seen >= plan.pages)


async def _patiently(act: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Waits for whoever has the table to himself, for a while. Raises `ConsumerError` if it lasts."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(ContentionError),
            wait=wait_fixed(RETRY_SECONDS),
            stop=stop_after_delay(PATIENCE_SECONDS),
            reraise=True,
        ):
            with attempt:
                found = await act(*args, **kwargs)
    except ContentionError as error:
        raise ConsumerError("somebody holds the table conversation_event: run this again when it is free") from error
    return found


async def _rest(seconds: float, stopping: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)
