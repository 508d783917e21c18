"""The parts of an event's time: its fetch, the steps of its batch, each statement's round trip. By the wall clock.

`python -m tests.benchmarks.parts FILE` is a replica that writes the parts of its batches into a file when it ends.
"""

import gc
import json
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from statistics import mean, median
from typing import Any
from unittest.mock import patch

import asyncpg

import consumer.service.service
import consumer.worker
from consumer.commands.run import run
from consumer.kafka.partition import AssignedPartition
from consumer.observability.metrics import Metrics
from consumer.postgres.pool import Pool
from consumer.records import Record
from consumer.worker import PartitionWorker
from tests.benchmarks.report import table

LONGEST = 32
"""Characters of a statement that are printed."""
FETCH, WAIT, REST = "fetch: append to delivery", "wait for the batch before", "the rest"
Connected = AbstractAsyncContextManager[asyncpg.Connection]
_current: ContextVar["BatchParts | None"] = ContextVar("_current", default=None)


@dataclass(slots=True)
class BatchParts:
    """Seconds by part, in the order in which they begin; the rest is bookkeeping, and the event loop's other work."""

    records: int
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


@dataclass(slots=True)
class Parts:
    """The batches of a process, and the seconds of each garbage collection, which stops all its workers."""

    batches: list[BatchParts] = field(default_factory=list)
    collections: list[float] = field(default_factory=list)

    @property
    def summary(self) -> str:
        longest = 1000 * max(self.collections, default=0.0)
        return f"{len(self.collections)} garbage collections, the longest {longest:.0f} ms"


@contextmanager
def timed_parts() -> Iterator[Parts]:
    """The batches of all workers of this process meanwhile."""
    parts = Parts()
    delivered: dict[tuple[int, int], float] = {}
    with ExitStack() as stack:
        for name in ("execute", "fetch", "copy_records_to_table"):
            original = getattr(asyncpg.Connection, name)
            stack.enter_context(patch.object(asyncpg.Connection, name, _timed_statement(original, name)))
        for module, name in ((consumer.worker, "decode_all"), (consumer.service.service, "decide")):
            stack.enter_context(patch.object(module, name, _timed(getattr(module, name), name.partition("_")[0])))
        for owner, name, original in (
            (Pool, "connection", _timed_connection(Pool.connection)),
            (Metrics, "committed", _timed(Metrics.committed, "count")),
        ):
            stack.enter_context(patch.object(owner, name, original))
        process = _timed_batch(PartitionWorker._process, parts.batches, delivered)
        stack.enter_context(patch.object(PartitionWorker, "_process", process))
        append = _noted(AssignedPartition.append, delivered)
        stack.enter_context(patch.object(AssignedPartition, "append", append))
        stack.enter_context(_timed_collections(parts.collections))
        yield parts


def parts_table(batches: Sequence[BatchParts], at_most: int) -> list[list[str]]:
    """Of the batches that have so many records at most: milliseconds a batch, by part."""
    chosen = [batch for batch in batches if batch.records <= at_most]
    rows = []
    for name in dict.fromkeys(name for batch in chosen for name in batch.seconds):
        spent = [1000 * batch.seconds[name] for batch in chosen if name in batch.seconds]
        share = f"{len(spent) / len(chosen):.0%}"
        rows.append((name, share, f"{median(spent):.3f}", f"{mean(spent):.3f}", f"{sum(spent) / len(chosen):.3f}"))
    total = [1000 * sum(batch.seconds.values()) for batch in chosen]
    rows.append(("all", "100%", f"{median(total):.3f}", f"{mean(total):.3f}", f"{mean(total):.3f}"))
    records = mean(batch.records for batch in chosen)
    heading = (f"{len(chosen)} batches of {records:.2f} events", "of batches", "median ms", "mean ms", "ms a batch")
    return table(heading, *rows)


def total_seconds(batches: Sequence[BatchParts]) -> dict[str, float]:
    """By part."""
    total: dict[str, float] = defaultdict(float)
    for batch in batches:
        for part, seconds in batch.seconds.items():
            total[part] += seconds
    return total


def _add(part: str, began: float) -> None:
    if (batch := _current.get()) is not None:
        batch.add(part, time.perf_counter() - began)


@contextmanager
def _timed_collections(collections: list[float]) -> Iterator[None]:
    began = 0.0

    def note(phase: str, _: dict[str, int]) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            collections.append(time.perf_counter() - began)

    gc.callbacks.append(note)
    try:
        yield
    finally:
        gc.callbacks.remove(note)


def _timed(original: Callable[..., Any], part: str) -> Callable[..., Any]:
    @wraps(original)
    def function(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            _add(part, began)

    return function


def _timed_statement(original: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
    verb = "COPY " if name.startswith("copy") else ""

    @wraps(original)
    async def method(self: asyncpg.Connection, what: str, *rest: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return await original(self, what, *rest, **options)
        finally:
            _add(f"{verb}{' '.join(what.split())[:LONGEST]}", began)

    return method


def _timed_connection(original: Callable[[Pool], Connected]) -> Callable[[Pool], Connected]:
    @asynccontextmanager
    async def method(self: Pool) -> AsyncIterator[asyncpg.Connection]:
        async with AsyncExitStack() as stack:
            began = time.perf_counter()
            connection = await stack.enter_async_context(original(self))
            _add("take a connection of the pool", began)
            yield connection
            began = time.perf_counter()
        _add("give it back", began)

    return method


def _timed_batch(
    original: Callable[..., Awaitable[None]], batches: list[BatchParts], delivered: dict[tuple[int, int], float]
) -> Callable[..., Awaitable[None]]:
    @wraps(original)
    async def method(self: PartitionWorker, records: Sequence[Record]) -> None:
        batch, began, now = BatchParts(len(records)), time.perf_counter(), time.time()
        at_hand = [delivered.pop((record.partition, record.offset), 0.0) for record in records]
        if all(at_hand):
            batch.seconds[FETCH] = mean(at_hand) - mean(record.timestamp / 1000 for record in records)
            batch.seconds[WAIT] = now - mean(at_hand)
        before = sum(batch.seconds.values())
        token = _current.set(batch)
        try:
            await original(self, records)
        finally:
            _current.reset(token)
        known = sum(batch.seconds.values()) - before
        batch.seconds[REST] = time.perf_counter() - began - known
        batches.append(batch)

    return method


def _noted(original: Callable[..., None], delivered: dict[tuple[int, int], float]) -> Callable[..., None]:
    @wraps(original)
    def method(self: AssignedPartition, records: Sequence[Any]) -> None:
        now = time.time()
        delivered.update(((record.partition, record.offset), now) for record in records)
        original(self, records)

    return method


def load(file: Path) -> Parts:
    data = json.loads(file.read_text())
    return Parts([BatchParts(**batch) for batch in data["batches"]], data["collections"])


def main(file: str) -> None:
    with timed_parts() as parts:
        run()
    Path(file).write_text(json.dumps(asdict(parts)))


if __name__ == "__main__":
    main(sys.argv[1])
