"""Bugs to plant into the code under test: the checker must find each. A mutant whose text is no longer there fails."""

import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from consumer import worker
from consumer.lifecycle import rules
from consumer.offsets import Progress
from consumer.service import cache, service
from consumer.service.batch import Batch
from consumer.service.ports import Decided, Locking, Lost
from tests import fakes
from tests.checker.planted import resumed
from tests.fakes import Transaction
from tests.simulation import processes


@contextmanager
def rewritten(owner: Any, name: str, *changes: tuple[str, str]) -> Iterator[None]:
    """A function with the second text of each change in the place of the first."""
    original = getattr(owner, name)
    source = textwrap.dedent(inspect.getsource(original))
    for old, new in changes:
        if source.count(old) != 1:
            raise LookupError(f"{name} has {source.count(old)} times: {old}")
        source = source.replace(old, new)
    made: dict[str, Any] = {}
    exec(compile(source, f"<mutant of {name}>", "exec"), inspect.unwrap(original).__globals__, made)
    with replaced(owner, name, made[name]):
        yield


@contextmanager
def replaced(owner: Any, name: str, other: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, other)
    try:
        yield
    finally:
        setattr(owner, name, original)


class RetryWithoutRedeciding(fakes.MemoryStore):
    """Writes what lost its race again, without deciding again."""

    async def save(
        self, decided: Decided, transaction: Transaction, progress: Progress | None, locking: Locking
    ) -> Lost:
        lost = await super().save(decided, transaction, progress, locking)
        if not lost:
            return lost
        fresh = await self.load({c.after.id: c.events for c in decided.changes if c.after.id in lost}, transaction)
        return await super().save(resumed(decided, lost, fresh), transaction, progress, locking)


Plant = Callable[[], AbstractContextManager[None]]
Worker, Service = worker.PartitionWorker, service.ConversationService
Store = fakes.MemoryStore
EARLY_OFFSET = """self._store.attempt({}, step, locking, {}) as attempt:
            await attempt.save(Decided(attempt.snapshot.now, ()))
        async with self._store.attempt(events, None, locking, {}) as attempt:"""
EARLY_READ = """async with self.transaction() as early:
        early_snapshot = await self.load(events, early, cached)
    async with self.transaction(progress) as transaction:"""
GUARD = "(stored.next_offset, stored.mark) == (progress.start, progress.mark)"
LOAD, KNOWN = 'await transaction.statement("load")', "known = {key: self._known(key, events) for key in current}"
MUTANTS: dict[str, Plant] = {
    "offsets stored before the effects": partial(
        rewritten,
        Service,
        "_transact",
        (
            "self._store.attempt(events, step, locking, batch.cache.lookup(events)) as attempt:",
            EARLY_OFFSET,
        ),
    ),
    "offset reset to latest": partial(
        rewritten,
        Worker,
        "_seek_to_stored_offset",
        ("(cluster_id, first))\n", "(cluster_id, end))\n"),
    ),
    "dead letter sent after the offset": partial(
        rewritten,
        Worker,
        "_process",
        ("await self._dead_letter(bad)\n", "\n"),
        (
            "self._source.applied(progress.end)",
            "self._source.applied(progress.end)\n        await self._dead_letter(bad)",
        ),
    ),
    "refused event dead-lettered after the offset": partial(
        rewritten, Batch, "step", (" and not self.awaits_dead_letters", "")
    ),
    "part of a batch moves the offset": partial(
        rewritten, Batch, "step", ("writing == self.outcomes.count(None)", "True")
    ),
    "rewind of an idle partition not noticed": partial(
        rewritten, Worker, "_check_for_rewind", ("if stored is None or", "if False and")
    ),
    "priority compared with <=": partial(
        rewritten,
        rules,
        "_close_closed",
        ("RANK[_closing_status(event)] < RANK", "RANK[_closing_status(event)] <= RANK"),
    ),
    "retry without deciding again": partial(replaced, processes, "MemoryStore", RetryWithoutRedeciding),
    "duplicate within a batch": partial(rewritten, service, "fold", ("seen.add(identity)", "pass")),
    "newer message left behind by a split": partial(
        rewritten, rules, "_close_open", ("newest is None or newest <= event.at", "True")
    ),
    "offset moved although some lost": partial(
        rewritten, Transaction, "save", ("progress.start if lost else progress.end", "progress.end")
    ),
    "offset guarded without its mark": partial(
        rewritten, Transaction, "_stands", (GUARD, "stored.next_offset == progress.start")
    ),
    "no offset guard": partial(rewritten, Transaction, "_stands", (f"stored is not None and {GUARD}", "True")),
    "no version in the WHERE": partial(
        rewritten,
        Transaction,
        "_wins",
        ("self.database.version(change.after.id) == change.before.version", "True"),
    ),
    "no inbox": partial(rewritten, Store, "_known", ("asked & {", "set() & {")),
    "read before the guard": partial(
        rewritten,
        Store,
        "attempt",
        ("async with self.transaction(progress) as transaction:", EARLY_READ),
        ("await self.load(events, transaction, cached)", "early_snapshot"),
    ),
    "ids read before rows": partial(
        rewritten,
        Store,
        "load",
        (LOAD, f"{KNOWN.replace('current', 'events')}; {LOAD}"),
        (f"    {KNOWN}", ""),
    ),
    "cache that outlives a rewind": partial(
        rewritten, cache.ConversationCache, "clear", ("self._conversations.clear()", "pass")
    ),
    "timer that is due once": partial(rewritten, Store, "_push_back", ("now + pause", "now + timedelta(days=9)")),
}
"""Name -> how to plant it. Those of the store's stand-in prove the checker; the real store has its own."""
