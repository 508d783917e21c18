"""Measures ours and its competitors side by side, and ours under conditions: `python -m tests.benchmarks [--quick]`."""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack

from rich.console import Console

from consumer.settings import WorkerSettings
from tests.benchmarks import conditions, pruning
from tests.benchmarks import outbox as relays
from tests.benchmarks import server as servers
from tests.benchmarks import ticker as tickers
from tests.benchmarks.arena import PARTITIONS, Arena, Log, open_arena
from tests.benchmarks.contest import COMPETITORS, rate_of, run_of_ours
from tests.benchmarks.depth import Depth, measure_depth
from tests.benchmarks.latency import Latency, NotMeasurableError, Pace, cost_table, latency_table, measure_latency
from tests.benchmarks.ours import Run, apply_all
from tests.benchmarks.plan import FULL, QUICK, Plan
from tests.benchmarks.report import Goal, Results, save, show, table
from tests.benchmarks.workload import Workload
from tests.stack.services import services

console = Console(soft_wrap=True, highlight=False)
FEW = 10_000
ORDINARY = Pace(500, 4)
WIDE, BEHIND = 64, 12
"""Partitions of a replica, and how many of them have a backlog."""
COMPRESSED = "wal_compression=pglz"
"""As `doctor` recommends it for a server that is built without lz4, as that of the Python package is."""
MEMORY_LIMIT = 512
"""Of a replica, in MiB: deploy/k8s/base/consumer.yaml."""
STATEMENTS = 11
"""Of a transaction, at most: `tests/integration/test_statements.py`."""
OURS = {1: "E", 2: "E2", 4: "E4"}
"""Replicas of ours, a process each -> letter."""
REPLICAS = {letter: replicas for replicas, letter in OURS.items()}


async def contest(arena: Arena, plan: Plan, results: Results) -> None:
    """Every competitor in every round, in turn."""
    runs: dict[str, list[Run]] = {}
    async with arena.log(Workload(events=plan.events)) as log:
        for number in range(plan.rounds):
            for competitor in COMPETITORS:
                results.rates.setdefault(competitor.letter, []).append(await rate_of(arena, log, competitor))
                say(f"round {number + 1}", competitor.letter, results.rates[competitor.letter][-1])
            for replicas in plan.replicas:
                letter = OURS[replicas]
                runs.setdefault(letter, []).append(await run_of_ours(arena, log, replicas))
                results.rates.setdefault(letter, []).append(runs[letter][-1].rate)
                say(f"round {number + 1}", letter, runs[letter][-1].rate)
    middle = {letter: sorted(of_one, key=lambda one: one.rate)[len(of_one) // 2] for letter, of_one in runs.items()}
    results.tables["Cost and scale"] = _scale(middle)
    rate, (*_, cost) = results.rate, middle["E"].cpu.microseconds(middle["E"].events)
    results.add(
        Goal("E against A", rate("E") / rate("A"), 150),
        Goal("E against B", rate("E") / rate("B"), 150),
        Goal("E against C32", rate("E") / rate("C32"), 8),
        Goal("E against D1", rate("E") / rate("D1"), 0.75),
        Goal("two replicas against one", rate("E2") / rate("E"), 1.3),
        Goal("machine cost of an event at backlog, one replica", cost, 30, at_most=True, unit="µs"),
    )


def _scale(runs: dict[str, Run]) -> list[list[str]]:
    """CPU per event tells where the wall is: of `cores` seconds a second, who takes how many."""
    rows = []
    for letter, run in runs.items():
        cpu = run.cpu.microseconds(run.events)
        busy = f"{cpu[-1] / 1e6 * run.rate / (os.cpu_count() or 1):.0%}"
        microseconds = (f"{one:.1f}" for one in cpu)
        statements = f"{STATEMENTS * run.transactions / run.events:.4f}"
        wal = f"{run.wal_bytes / run.events:.0f}"
        rows.append((REPLICAS[letter], f"{run.rate:,.0f}", *microseconds, busy, wal, statements))
    cpu_heading = ("CPU µs an event: replicas", "PostgreSQL", "Kafka", "machine")
    heading = ("replicas", "events/s", *cpu_heading, "machine busy", "WAL bytes an event", "SQL statements an event")
    return table(heading, *rows)


async def latency(arena: Arena, plan: Plan, results: Results) -> None:
    measured: list[Latency] = []
    for pace in plan.paces:
        measured.insert(0, await measure_latency(arena, pace, plan.latency_seconds))
        say("latency", measured[0].summary)
    results.tables["Latency"] = latency_table(measured)
    results.tables["Cost of an ordinary day"] = cost_table(measured)
    (day,) = (one for one in measured if one.pace == ORDINARY)
    replica, postgres, *_ = day.cost.cpu.microseconds(day.cost.events)
    results.add(
        Goal("latency at 500 events/s, p50", day.percentile(50), 3, at_most=True, unit="ms"),
        Goal("latency at 500 events/s, p99", day.percentile(99), 12, at_most=True, unit="ms"),
        Goal("CPU an event at 500 events/s, replica", replica, 600, at_most=True, unit="µs"),
        Goal("CPU an event at 500 events/s, PostgreSQL", postgres, 600, at_most=True, unit="µs"),
    )


async def growth(arena: Arena, plan: Plan, results: Results) -> None:
    """The same talk on a small and on a large table, and talk that is spread over all of the large one."""
    async with conditions.grown(arena, FEW) as few, conditions.grown(arena, plan.grown) as many:
        small = await _grown(arena, plan, few, Workload(FEW, plan.events))
        large = await _grown(arena, plan, many, Workload(plan.grown, plan.events, active=FEW))
        spread = await _grown(arena, plan, many, Workload(plan.grown, plan.events))
        compressed = await _grown(arena, plan, many, Workload(plan.grown, plan.events), COMPRESSED)
    all_active = f"{plan.grown:,}, all active"
    found = {f"{FEW:,}": small, f"{plan.grown:,}, {FEW:,} of them active": large, all_active: spread}
    found[f"{all_active}, {COMPRESSED}"] = compressed
    results.tables["Growth"] = table(
        ("conversations", "events/s", "CPU µs an event: replicas, PostgreSQL", "WAL bytes an event", "updates", "HOT"),
        *((what, *one.cells) for what, one in found.items()),
    )
    against = f"{plan.grown:,} conversations against {FEW:,}"
    results.add(
        Goal(f"{against}, as many active", large.run.rate / small.run.rate, 0.8),
        Goal(f"{against}, all active", spread.run.rate / small.run.rate, 0.6),
        Goal(f"{against}, all active, {COMPRESSED}", compressed.run.rate / small.run.rate, 0.6),
        Goal("updates that are HOT, all active", spread.hot / spread.updates, 0.9),
    )


async def _grown(
    arena: Arena, plan: Plan, template: str, workload: Workload, setting: str | None = None
) -> conditions.Grown:
    async with arena.log(workload, opening=False) as log:
        rounds = [await conditions.on_a_grown_table(arena, log, template, setting) for _ in range(plan.repeats)]
    what = f"{workload.conversations:,} conversations {setting or ''}".strip()
    say("growth", what, *(one.run.rate for one in rounds))
    return sorted(rounds, key=lambda one: one.run.rate)[len(rounds) // 2]


async def server(arena: Arena, plan: Plan, results: Results) -> None:
    """Settings of PostgreSQL, on a table all of whose conversations are active."""
    results.tables[f"Settings of the server{servers.ORIGIN}"] = await _tuned(
        servers.under_settings(arena, _tuned_workload(plan))
    )


async def shape(arena: Arena, plan: Plan, results: Results) -> None:
    """The same, with other fill factors and indexes."""
    results.tables[f"Shape of the tables{servers.ORIGIN}"] = await _tuned(
        servers.under_shapes(arena, _tuned_workload(plan))
    )


async def _tuned(measured: AsyncIterator[servers.Tuned]) -> list[list[str]]:
    rows = []
    async for one in measured:
        rows.append(one.cells)
        console.print(f"server: {', '.join(map(' '.join, zip(servers.HEADING, one.cells, strict=True)))}", markup=False)
    return table(servers.HEADING, *rows)


def _tuned_workload(plan: Plan) -> Workload:
    return Workload(plan.tuned, plan.tuned_events)


async def skew(arena: Arena, plan: Plan, results: Results) -> None:
    uniform = await _median(arena, plan, Workload(events=plan.events))
    skewed = await _median(arena, plan, Workload(events=plan.events, hot_share=0.9))
    say("skew", "90 % on one conversation", skewed.rate)
    results.add(Goal("90 % of events on one conversation against uniform", skewed.rate / uniform.rate, 1))


async def _median(arena: Arena, plan: Plan, workload: Workload) -> Run:
    async with arena.log(workload) as log:
        return await _middle(plan, lambda: _alone(arena, log))


async def _alone(arena: Arena, log: Log) -> Run:
    async with arena.database() as database:
        return await apply_all(arena, log, database)


async def _middle(plan: Plan, measure: Callable[[], Awaitable[Run]]) -> Run:
    runs = sorted([await measure() for _ in range(plan.repeats)], key=lambda run: run.rate)
    return runs[len(runs) // 2]


async def contention(arena: Arena, plan: Plan, results: Results) -> None:
    async with arena.log(Workload(events=plan.events)) as log:
        aside = await _middle(plan, lambda: conditions.contended(arena, log, on_ours=False))
        on_ours = await _middle(plan, lambda: conditions.contended(arena, log, on_ours=True))
        alone = await _middle(plan, lambda: _alone(arena, log))
        free = await conditions.with_a_held_row(arena, log, held=False)
        held = await conditions.with_a_held_row(arena, log, held=True)
    say("contention", "8 writers elsewhere, on our rows, none", aside.rate, on_ours.rate, alone.rate)
    results.tables["Contention"] = table(
        ("outside", "events/s"),
        ("nobody", f"{alone.rate:,.0f}"),
        ("8 writers on 10 rows of their own", f"{aside.rate:,.0f}"),
        ("8 writers on 10 of our rows", f"{on_ours.rate:,.0f}"),
    )
    others = free.others_seconds / held.others_seconds
    results.add(
        Goal("8 writers on 10 of our rows against the same elsewhere", on_ours.rate / aside.rate, 0.7),
        Goal("other partitions while a row is held", others, 0.7),
    )


async def memory(arena: Arena, plan: Plan, results: Results) -> None:
    async with arena.log(Workload(events=plan.backlog)) as log:
        found = await conditions.memory(arena, log)
    console.print(found)
    results.add(
        Goal(f"memory with a backlog of {found.backlog:,}", found.highest, 250, at_most=True, unit="MiB"),
        Goal("memory, second half of it against the first", found.second_half / found.first_half, 1.1, at_most=True),
    )


async def wide(arena: Arena, plan: Plan, results: Results) -> None:
    """A replica with many partitions, some of them behind, their buffers and caches full."""
    workload = Workload(WIDE * WorkerSettings().max_remembered, plan.backlog)
    async with arena.log(workload, partitions=WIDE, filled=BEHIND) as log:
        found = await conditions.memory(arena, log)
    console.print(found)
    name = f"memory with {WIDE} partitions, {BEHIND} of them {found.backlog // BEHIND:,} records behind"
    results.add(Goal(name, found.highest, MEMORY_LIMIT, at_most=True, unit="MiB"))


async def depth(arena: Arena, plan: Plan, results: Results) -> None:
    """An event on a conversation with a short and with a long past."""
    measured: list[Depth] = []
    for sessions in plan.sessions:
        async with arena.database() as database:
            measured.append(await measure_depth(database, sessions))
    heading = ("closed sessions", "events", "ms of a transaction with an event: on time", "late")
    results.tables["A long past"] = table(heading, *(one.cells for one in measured))
    short, long = measured[0], measured[-1]
    name = f"a late event on {long.sessions} sessions against {short.sessions}"
    results.add(Goal(name, long.late / short.late, 1.5, at_most=True))


async def prune(arena: Arena, plan: Plan, results: Results) -> None:
    async with arena.database() as database:
        found = await pruning.measure(database, rows=plan.pruned)
    results.tables["Pruning"] = table(
        ("rows removed", "rows/s", "WAL bytes a row"),
        (f"{found.rows:,}", f"{found.rows / found.seconds:,.0f}", f"{found.wal_bytes / found.rows:.0f}"),
    )


async def outbox(arena: Arena, plan: Plan, results: Results) -> None:
    found = await relays.catch_up(arena, plan.outbox)
    rate, mebibytes = (
        found.rows / found.seconds,
        (size / conditions.MIB for size in (found.highest_bytes, *found.sizes)),
    )
    results.tables["Outbox"] = table(
        ("transitions", "rows/s", "CPU µs a row", "highest MiB", "table MiB: full", "published", "vacuumed"),
        (
            *(f"{found.rows:,}", f"{rate:,.0f}", f"{1e6 * found.cpu_seconds / found.rows:.1f}"),
            *(f"{size:.1f}" for size in mebibytes),
        ),
    )
    async with arena.log(Workload(events=plan.events)) as log:
        alone = await _middle(plan, lambda: _alone(arena, log))
        beside = await _middle(plan, lambda: relays.beside_a_relay(arena, log))
    say("outbox", "a replica alone, beside a relay", alone.rate, beside.rate)
    results.add(
        Goal(f"outbox, {found.rows:,} transitions caught up", rate, 20_000, unit="rows/s"),
        Goal("a replica at full load beside a relay against alone", beside.rate / alone.rate, 0.9),
    )


async def ticker(arena: Arena, plan: Plan, results: Results) -> None:
    due = await tickers.due(arena, plan.due)
    few, many = [await tickers.idle(arena, count, plan.idle_seconds) for count in (FEW, plan.grown)]
    cpu = (f"{1e6 * one / due.ticks:.1f}" for one in (due.cpu.replicas, due.cpu.postgres, due.cpu.kafka))
    results.tables["Ticker"] = table(
        ("due at once", "ticks/s", "failed", "CPU µs a tick: ticker", "PostgreSQL", "Kafka", "highest MiB"),
        (f"{plan.due:,}", f"{due.rate:,.0f}", f"{due.failed:,}", *cpu, f"{due.highest_bytes / conditions.MIB:.1f}"),
    )
    results.tables["Ticker with nothing due"] = table(
        ("conversations, due within 15 minutes", "CPU, ticker", "CPU, PostgreSQL"),
        *(
            (f"{count:,}", f"{one.ticker:.2%}", f"{one.postgres:.2%}")
            for count, one in ((FEW, few), (plan.grown, many))
        ),
    )
    results.add(
        Goal(f"ticker, {plan.due:,} due at once", due.rate, 20_000, unit="ticks/s"),
        Goal(
            f"ticker, CPU with nothing due: {plan.grown:,} conversations against {FEW:,}",
            many.core / few.core,
            1.5,
            at_most=True,
        ),
    )


ALL = (contest, latency, skew, contention, memory, wide, depth, growth, server, shape, prune, outbox, ticker)
PARTS = {part.__name__: part for part in ALL}


def say(where: str, what: str, *rates: float) -> None:
    console.print(f"{where}: {what} {', '.join(f'{rate:,.0f}/s' for rate in rates)}")


async def run(plan: Plan, only: list[str], results: Results) -> None:
    with ExitStack() as stack:
        found = stack.enter_context(services())
        console.print(found.origin)
        async with open_arena(found) as arena:
            for name in only or plan.parts:
                try:
                    await PARTS[name](arena, plan, results)
                except NotMeasurableError as error:
                    results.left_out[name] = str(error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller and once: in minutes, only roughly right")
    parser.add_argument("--only", nargs="*", default=[], choices=[*PARTS], help="these parts; the other figures stay")
    arguments = parser.parse_args()
    plan = QUICK if arguments.quick else FULL
    results = Results(plan.command, f"{os.cpu_count()} cores, {PARTITIONS} partitions", _names())
    asyncio.run(run(plan, arguments.only, results))
    show(console, results)
    if results.left_out:
        parser.exit(1, "".join(f"{name} is left out: {why}\n" for name, why in results.left_out.items()))
    if not arguments.quick:
        save(results)


def _names() -> dict[str, str]:
    competitors = {competitor.letter: competitor.what for competitor in COMPETITORS}
    return competitors | {"E": "ours, one replica", "E2": "ours, two replicas", "E4": "ours, four replicas"}


if __name__ == "__main__":
    main()
