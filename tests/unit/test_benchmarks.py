"""The pure parts of the benchmarks: what they make of what they have measured."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

from tests.benchmarks.cpu import cpu_table, what_runs
from tests.benchmarks.latency import Cost, Latency, Pace, cost_table, latencies
from tests.benchmarks.ours import Run, Usage
from tests.benchmarks.parts import BatchParts, parts_table, total_seconds
from tests.benchmarks.report import merged
from tests.benchmarks.sender import Sent
from tests.benchmarks.server import HEADING, Tuned, scaled, settings_variants

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SENT = Sent(events=1000, seconds=2.0, cpu_seconds=0.1, latest_seconds=0.0)


def after(milliseconds: float) -> datetime:
    return NOON + timedelta(milliseconds=milliseconds)


def test_a_latency_runs_from_append_to_commit_and_the_flush_comes_on_top() -> None:
    appended = {"a": NOON, "b": after(1)}
    committed = {"a": after(3), "b": after(2), "of the opening": after(0)}

    seconds = latencies(appended, committed, flush_seconds=0.001)

    assert seconds == pytest.approx([0.004, 0.002])


def test_an_event_that_was_not_committed_is_no_latency_but_an_error() -> None:
    with pytest.raises(KeyError, match="lost"):
        latencies({"lost": NOON}, {}, flush_seconds=0)


def test_percentiles_are_in_milliseconds() -> None:
    seconds = [number / 1000 for number in range(1, 1001)]

    latency = Latency(Pace(500, 4), seconds, 0.0, Cost(1000, 500, Usage(1, 1, 1), 0.0, SENT))

    assert latency.percentile(50) == pytest.approx(500, abs=1)
    assert latency.percentile(99) == pytest.approx(990, abs=1)


def test_the_cost_of_the_machine_is_the_sum_without_the_sender() -> None:
    cost = Cost(1000, 500, Usage(replicas=0.6, postgres=0.3, kafka=0.1), 0.2, SENT)

    _, row = cost_table([Latency(Pace(500, 4, {"LINGER": "20"}), [0.0, 0.0], 0.0, cost)])

    assert row == ["500, LINGER=20", "4", "2.0", "600", "300", "100", "1,000", "100"]


def test_the_parts_of_a_batch_are_of_small_batches_alone() -> None:
    small = [BatchParts(1, {"decode": 0.001, "COMMIT;": 0.002}), BatchParts(1, {"decode": 0.003})]

    heading, decode, commit, total = parts_table([*small, BatchParts(4000, {"decode": 1.0})], at_most=20)

    assert heading[0] == "2 batches of 1.00 events"
    assert decode == ["decode", "100%", "2.000", "2.000", "2.000"]
    assert commit == ["COMMIT;", "50%", "2.000", "2.000", "1.000"]
    assert total == ["all", "100%", "3.000", "3.000", "3.000"]


def calls(file: str, name: str) -> Callable[[Callable[[], Any]], Any]:
    """A function of that name, as of that file, that returns what its argument returns."""
    made: dict[str, Any] = {}
    exec(compile(f"def {name}(argument): return argument()", file, "exec"), made)
    function: Callable[[Callable[[], Any]], Any] = made[name]
    return function


@pytest.mark.parametrize(
    ("stack", "runs"),
    [
        ([("/lib/asyncpg/connection.py", "fetch")], "asyncpg"),
        ([("/lib/consumer/worker.py", "run"), ("/lib/aiokafka/conn.py", "send")], "aiokafka"),
        ([("/lib/aiokafka/conn.py", "send"), ("/lib/asyncio/selector_events.py", "write")], "aiokafka: sends"),
        ([("/lib/consumer/commands/run.py", "run"), ("/lib/selectors.py", "select")], "event loop: waits"),
        ([("/lib/asyncio/base_events.py", "call_soon")], "event loop: the rest"),
    ],
)
def test_a_sample_counts_for_the_innermost_library(stack: list[tuple[str, str]], runs: str) -> None:
    def sample() -> str:
        return what_runs(sys._getframe(1))

    called: Callable[[], Any] = sample
    for file, name in reversed(stack):
        called = partial(calls(file, name), called)

    assert called() == runs


def test_the_cpu_of_an_event_is_shared_out_by_samples() -> None:
    _, first, second = cpu_table({"asyncpg": 1, "ours": 3}, microseconds=1000)

    assert first == ["ours", "75%", "750"]
    assert second == ["asyncpg", "25%", "250"]


def test_seconds_add_up_by_part() -> None:
    total = total_seconds([BatchParts(1, {"decode": 1.0}), BatchParts(2, {"decode": 2.0, "decide": 3.0})])

    assert total == {"decode": 3.0, "decide": 3.0}


def test_what_was_not_measured_again_keeps_its_figures() -> None:
    old = {"events_per_second": {"E": [1]}, "tables": {"A": 1, "B": 2}, "goals": [{"name": "x", "figure": 1}]}
    new = {"events_per_second": {}, "tables": {"B": 3}, "goals": [{"name": "x", "figure": 2}, {"name": "y"}]}

    assert merged(old, new) == {
        "events_per_second": {"E": [1]},
        "tables": {"A": 1, "B": 3},
        "goals": [{"name": "x", "figure": 2}, {"name": "y"}],
    }


def test_a_setting_that_the_server_does_not_know_is_left_out() -> None:
    all_known = settings_variants({"off", "on", "pglz", "lz4", "zstd"})

    few_known = settings_variants({"off", "on", "pglz"})

    assert {one.settings["wal_compression"] for one in all_known} == {"off", "pglz", "lz4", "zstd"}
    assert few_known == [one for one in all_known if one.settings["wal_compression"] in {"off", "pglz"}]
    assert few_known[0] == few_known[-1]


def test_the_distance_between_checkpoints_is_as_large_a_part_as_the_conversations_are() -> None:
    settings = {"max_wal_size": "4GB", "wal_compression": "off"}

    assert scaled(settings, 1_000_000) == {"max_wal_size": "800MB", "wal_compression": "off"}
    assert scaled(settings, 5_000_000)["max_wal_size"] == "4000MB"


def test_a_load_under_a_variant_is_a_row_of_figures() -> None:
    run = Run(1000, 0.5, Usage(replicas=0.02, postgres=0.01, kafka=0.005), 700_000, 3)

    cells = Tuned("off", run, checkpoints=2, hot=0.943, size=5 * 2**20).cells

    assert cells == ("off", "2,000", "20.0", "10.0", "700", "2", "94%", "5")
    assert len(cells) == len(HEADING)
