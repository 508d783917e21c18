"""`conversation rebuild`: compares rows with the history, folded again, and repairs those that differ."""

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from consumer import settings as configuration
from consumer.commands.output import AsJson, Yes, err, moment, print_json, print_line
from consumer.commands.signals import stop_on_signals
from consumer.errors import ConsumerError, ContentionError
from consumer.history.comparison import Difference, Finding, Result, compare
from consumer.lifecycle.model import Policy
from consumer.postgres.store import PostgresStore
from consumer.retry import Backoff, retried

BATCH = 200
"""Conversations read at one moment."""
BACKOFF = Backoff(0.02, 0.5)
RETRY_SECONDS = 10.0

REMEDIES = {
    Result.NOT_WHOLE: "rows are pruned or lost, so the history cannot be folded: nothing is said, nothing repaired",
    Result.OTHER_POLICY: (
        "the policy of now did not make this, so nothing is repaired: to check under the policy of then, give it in "
        "CONSUMER_POLICY__*"
    ),
}


@dataclass(slots=True)
class Tally:
    """What was found, and what was written."""

    results: Counter[Result] = field(default_factory=Counter)
    repaired: int = 0
    seconds: float = 0.0
    stopped: bool = False

    @property
    def is_well(self) -> bool:
        """Whether nothing differs. What is not whole is not known to."""
        wrong = self.results[Result.DIFFERS] - self.repaired + self.results[Result.OTHER_POLICY]
        return not wrong and not self.stopped


def rebuild(
    conversation_id: Annotated[str | None, typer.Argument(help="The conversation id; or --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every conversation.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Compare only; the default.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Compare rows with the history, folded again; repair them with --yes. Exit code 1 if anything differs."""
    if every == (conversation_id is not None):
        raise typer.BadParameter("a conversation id, or --all")
    if check and yes:
        raise typer.BadParameter("--check or --yes, not both")
    settings = configuration.load()

    async def work() -> bool:
        async with PostgresStore.open(settings.database) as store:
            if conversation_id is None:
                return await _rebuild_all(store, settings.policy.policy, repair=yes, as_json=as_json)
            return await _rebuild_one(store, conversation_id, settings.policy.policy, repair=yes, as_json=as_json)

    raise typer.Exit(0 if asyncio.run(work()) else 1)


async def _rebuild_one(
    store: PostgresStore, conversation_id: str, policy: Policy, *, repair: bool, as_json: bool
) -> bool:
    (stored,) = await store.stored([conversation_id])
    if stored.is_unknown:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    finding = compare(stored, policy)
    repaired = repair and finding.target is not None and await repair_now(store, conversation_id, policy)
    _print(finding, repaired=repaired, as_json=as_json)
    if finding.result is Result.EQUAL and not as_json:
        print_line(f"{conversation_id}: as its {len(stored.history)} history rows say")
    if finding.target is not None and not repair and not as_json:
        print_line("nothing done: add --yes to write what the history says")
    return finding.result is Result.EQUAL or repaired


async def _rebuild_all(store: PostgresStore, policy: Policy, *, repair: bool, as_json: bool) -> bool:
    stopping = asyncio.Event()
    stop_on_signals(stopping.set)
    tally, total = Tally(), await store.about_how_many()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.perf_counter()
    # Findings go above the bar on a terminal, and nowhere else than to a pipe.
    with Progress(
        *columns, console=err, disable=not err.is_terminal, redirect_stdout=sys.stdout.isatty(), redirect_stderr=False
    ) as progress:
        task = progress.add_task("conversations", total=total)
        async with aclosing(_findings(store, policy, stopping)) as batches:
            async for findings in batches:
                for finding in findings:
                    await _take(store, policy, finding, tally, repair=repair, as_json=as_json)
                checked, tally.seconds = tally.results.total(), time.perf_counter() - started
                rate = f"{checked / tally.seconds:,.0f} conversations/s"
                progress.update(task, completed=checked, total=max(total, checked), description=rate)
    tally.stopped = stopping.is_set()
    _print_tally(tally, repair=repair, as_json=as_json)
    return tally.is_well


async def _findings(
    store: PostgresStore, policy: Policy, stopping: asyncio.Event
) -> AsyncGenerator[list[Finding], None]:
    """Every conversation, by id; each batch as it is at one moment."""
    last = ""
    while not stopping.is_set() and (ids := await store.ids_after(last, BATCH)):
        yield [compare(stored, policy) for stored in await store.stored(ids) if not stored.is_unknown]
        last = ids[-1]


async def _take(
    store: PostgresStore, policy: Policy, finding: Finding, tally: Tally, *, repair: bool, as_json: bool
) -> None:
    tally.results[finding.result] += 1
    repaired = repair and finding.target is not None and await repair_now(store, finding.id, policy)
    tally.repaired += repaired
    # What is pruned is many, and as it should be: the tally has their number.
    if finding.result is not Result.EQUAL and (finding.result is not Result.NOT_WHOLE or as_json):
        _print(finding, repaired=repaired, as_json=as_json)


async def repair_now(store: PostgresStore, conversation_id: str, policy: Policy) -> bool:
    """Compares again and writes under the version that was compared, until nobody comes in between.

    False if there is nothing left to write, or what is left cannot be known. Raises `ConsumerError` if others keep
    coming in between.
    """

    async def once(_: int) -> bool:
        (stored,) = await store.stored([conversation_id])
        finding = compare(stored, policy)
        if finding.target is None:
            return finding.result is Result.EQUAL
        await store.write_repaired(finding.target, stored.version)
        return True

    try:
        return await retried(once, ContentionError, BACKOFF, asyncio.sleep, seconds=RETRY_SECONDS)
    except ContentionError as error:
        raise ConsumerError(f"others keep writing {conversation_id!r}: run this again") from error


def _print(finding: Finding, *, repaired: bool, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "conversation_id": finding.id,
                "result": finding.result,
                "repaired": repaired,
                "why": finding.why,
                "differences": [difference._asdict() for difference in finding.differences],
            }
        )
        return
    lines = [_as_text(difference) for difference in finding.differences]
    if finding.result in REMEDIES:
        lines.append(f"{finding.why}; {REMEDIES[finding.result]}")
    for line in [*lines, *(["repaired"] if repaired else [])]:
        print_line(f"{finding.id}: {line}")


def _as_text(difference: Difference) -> str:
    where = f"session {difference.session}, " if difference.session else ""
    stored, folded = (_value(one) for one in (difference.stored, difference.folded))
    return f"{where}{difference.name} is {stored}, by its history {folded}"


def _value(value: object) -> str:
    return moment(value) if isinstance(value, datetime) else "nothing" if value is None else str(value)


def _print_tally(tally: Tally, *, repair: bool, as_json: bool) -> None:
    results = {result.value: tally.results[result] for result in Result}
    if as_json:
        print_json({"checked": tally.results.total(), **results, "repaired": tally.repaired, "stopped": tally.stopped})
        return
    counts = ", ".join(f"{count:,} {result}" for result, count in results.items())
    rate = tally.results.total() / tally.seconds if tally.seconds else 0
    print_line(f"{tally.results.total():,} conversations in {tally.seconds:.1f} s, {rate:,.0f}/s: {counts}")
    for result, remedy in REMEDIES.items():
        if tally.results[result]:
            print_line(f"{result.value}: {remedy}")
    if repair:
        print_line(f"{tally.repaired:,} repaired")
    elif tally.results[Result.DIFFERS]:
        print_line("nothing done: add --yes to write what the history says")
    if tally.stopped:
        print_line("stopped before the end: run it again")
