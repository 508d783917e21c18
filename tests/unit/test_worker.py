"""One partition's life on fakes: what comes before what, in outages, refusals, stops and drains."""

import asyncio
from collections.abc import Sequence

import pytest

from consumer.errors import RefusedError, TooSlowError, UnavailableError
from consumer.offsets import Partition, StoredOffset
from consumer.records import DeadLetter
from consumer.service.ports import Decided
from consumer.service.service import ConversationService
from consumer.worker import UNACKNOWLEDGED_SECONDS
from tests.builders import HOUR, message
from tests.fakes import MemoryStore
from tests.memory_database import UnansweredCommitError
from tests.simulation.loop import VirtualLoop
from tests.unit.worker_on_fakes import NOW, PLACE, FakeLog, Letters, Troubled, encoded, worker

pytestmark = pytest.mark.virtual_time


async def test_an_outage_after_a_refusal_does_not_move_the_offset_past_the_dead_letter() -> None:
    refused = message(at=NOW, conversation_id="refused")
    outages = 3

    def trouble(decided: Decided) -> None:
        nonlocal outages
        ids = {change.after.id for change in decided.changes}
        if "refused" in ids:
            raise RefusedError("never")
        if ids and outages:
            outages -= 1
            raise UnavailableError("down")

    log, store, letters = FakeLog(encoded(refused, message(at=NOW))), Troubled(trouble), Letters(failures=10**9)
    offsets_before_the_letter: list[int] = []
    log.on_wait = lambda: offsets_before_the_letter.append(store.offsets[PLACE].next_offset)
    async with worker(log, store, letters):
        while letters.failures > 10**9 - 3:  # noqa: ASYNC110 - it is tried again and again
            await asyncio.sleep(0)
        assert set(offsets_before_the_letter) == {0}
        letters.failures = 0
        await log.revoked.wait()

    assert [letter.record.offset for letter in letters.sent] == [0]
    assert store.offsets[PLACE].next_offset == 2
    assert "c-1" in store.conversations


async def test_dead_letters_are_acknowledged_before_the_offset_moves() -> None:
    log, store, letters = FakeLog([b"poison", *encoded(message(at=NOW))]), MemoryStore(), Letters(failures=2)
    seen: list[int] = []
    log.on_wait = lambda: seen.append(store.offsets[PLACE].next_offset)

    async with worker(log, store, letters):
        await log.revoked.wait()

    assert seen == [0, 0]
    assert [letter.record.value for letter in letters.sent] == [b"poison"]
    assert store.offsets[PLACE].next_offset == 2


async def test_a_database_that_is_too_slow_gets_smaller_batches_and_larger_ones_again() -> None:
    def trouble(decided: Decided) -> None:
        if len(decided.changes) > 10 and len(store.conversations) < 60:
            raise TooSlowError("timeout")

    events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(200)]
    log, store = FakeLog(encoded(*events)), Troubled(trouble)

    async with worker(log, store, Letters()) as (health, _):
        await log.revoked.wait()
        assert health.outages == {}

    assert len(store.conversations) == 200
    assert log.taken[:5] == [200, 100, 50, 25, 12]
    assert 6 in log.taken
    assert max(log.taken[6:]) > 12


class Overtaken(MemoryStore):
    """Another owner moves the offset after it was read for the first time."""

    reads = 0

    async def stored_offset(self, partition: Partition) -> StoredOffset | None:
        found = await super().stored_offset(partition)
        if found is not None:
            self.reads += 1
            if self.reads == 1:
                self.offsets[partition] = StoredOffset("cluster", 4)
        return found


async def test_a_stale_owner_goes_on_where_the_database_is() -> None:
    events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(6)]
    log, store = FakeLog(encoded(*events)), Overtaken()

    async with worker(log, store, Letters()):
        await log.revoked.wait()

    assert sorted(store.conversations) == ["c-4", "c-5"]
    assert store.offsets[PLACE].next_offset == 6


async def test_a_record_that_cannot_be_read_stops_the_partition_until_the_offset_is_set() -> None:
    log, store = FakeLog(encoded(*(message(at=NOW) for _ in range(3)))), MemoryStore()
    log.unreadable = 0
    reasons: list[str] = []

    async with worker(log, store, Letters()) as (health, _):

        def mend() -> None:
            reasons.extend(health.not_ready())
            store.offsets[PLACE] = StoredOffset("cluster", 1)

        log.on_wait = mend
        await log.revoked.wait()
        assert health.stopped == {}

    assert "events[0]: cannot be read" in reasons
    assert [row.version for row, _ in store.rows["c-1"]] == [1, 2]


async def test_an_offset_set_to_the_end_makes_the_replica_ready_although_no_record_comes() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()
    log.unreadable = 0
    stopped: list[list[str]] = []

    def no_record_comes() -> None:
        """The operator sets the offset while the worker waits; the next wait shows what came of it."""
        stopped.append(list(health.stopped.values()))
        if len(stopped) == 1:
            store.offsets[PLACE] = StoredOffset("cluster", 1)
        else:
            log.revoke()

    def after_the_stop() -> None:
        log.unreadable, log.records, log.on_idle = None, [], no_record_comes

    log.on_wait = after_the_stop
    async with worker(log, store, Letters()) as (health, _):
        await log.revoked.wait()

    assert stopped == [["cannot be read"], []]


class PatientLog(FakeLog):
    """Its waits take the time of the loop."""

    async def revoked_within(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        self.on_wait()
        return self.revoked.is_set()


async def _apply_past_a_locked_row() -> list[tuple[float, str]]:
    """What /status says of blocked conversations, and when it changes, while somebody holds a row for 20 s."""
    log, store = PatientLog(encoded(message(at=NOW))), MemoryStore()
    await ConversationService(store).apply([message(at=NOW - HOUR)])
    transaction = MemoryStore(store.database).transaction()
    await (await transaction.__aenter__()).lock("c-1")
    blocked, clock = [(0.0, "")], asyncio.get_running_loop().time

    async with worker(log, store, Letters()) as (health, _):

        def note() -> None:
            if (text := health.blocked.get("events[0]", "")) != blocked[-1][1]:
                blocked.append((clock(), text))

        log.on_wait = note
        await asyncio.sleep(20)
        await transaction.__aexit__(None, None, None)
        await log.revoked.wait()
        note()

    assert [row.version for row, _ in store.rows["c-1"]] == [1, 2]
    return blocked


def test_who_holds_a_row_for_long_is_named_until_it_is_free() -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        (_, named, free) = runner.run(_apply_past_a_locked_row())

    assert 5 <= named[0] < 7
    assert "(memory, user somebody, active, transaction open since" in named[1]
    assert 20 <= free[0] < 22
    assert free[1] == ""


async def test_a_partition_whose_offset_is_outside_the_log_goes_on_once_it_is_mended() -> None:
    log, store = FakeLog(encoded(message(at=NOW)), first=5), MemoryStore()
    store.offsets[PLACE] = StoredOffset("cluster", 2)
    reasons: list[str] = []

    async with worker(log, store, Letters()) as (health, _):

        def mend() -> None:
            reasons.extend(health.stopped.values())
            store.offsets[PLACE] = StoredOffset("cluster", 5)

        log.on_wait = mend
        await log.revoked.wait()

    assert reasons == [
        "stored offset 2 is outside the log 5..6: run `conversation-consumer offsets set events 0 OFFSET`",
    ]
    assert store.offsets[PLACE].next_offset == 6


async def test_giving_up_ends_an_outage_between_transactions() -> None:
    def down(_: Decided) -> None:
        raise UnavailableError("down")

    log, store = FakeLog(encoded(message(at=NOW))), Troubled(down)
    async with worker(log, store, Letters()) as (health, running):
        while not health.outages:  # noqa: ASYNC110 - health is plain facts
            await asyncio.sleep(0)
        log.revoke()
        await running
        assert health.outages == {}

    assert (store.conversations, log.applied_to) == ({}, [])


async def test_a_rewind_is_noticed_although_no_record_comes() -> None:
    log, store = FakeLog(encoded(message(at=NOW), message(at=NOW))), MemoryStore()
    backup = store.database.copied()
    backup.offsets[PLACE] = StoredOffset("cluster", 0)

    def rewind_once_applied() -> None:
        if len(log.applied_to) == 1:
            store.database.restore(backup)
        elif len(log.applied_to) == 2:
            log.revoke()

    log.on_idle = rewind_once_applied
    async with worker(log, store, Letters()):
        await log.revoked.wait()

    assert log.applied_to == [2, 2]
    assert [row.version for row, _ in store.rows["c-1"]] == [1, 2]


async def test_a_replica_whose_database_is_too_slow_is_not_ready_until_a_batch_passes() -> None:
    reasons: list[dict[str, str]] = []
    attempts = 0

    def trouble(_: Decided) -> None:
        nonlocal attempts
        attempts += 1
        reasons.append(dict(health.outages))
        if attempts < 4:
            raise TooSlowError("timeout")

    log, store = FakeLog(encoded(message(at=NOW))), Troubled(trouble)
    async with worker(log, store, Letters()) as (health, _):
        await log.revoked.wait()
        assert health.outages == {}

    assert [list(outages) for outages in reasons] == [[], *[["events[0], writing"]] * 3]


async def test_a_replica_is_ready_again_once_a_batch_proves_written_whose_commit_was_not_answered() -> None:
    unanswered, outages = [UnansweredCommitError(0.0, takes_effect=True)], list[dict[str, str]]()

    async def statement(name: str) -> None:
        if name == "commit" and unanswered:
            raise unanswered.pop()

    log = FakeLog(encoded(message(at=NOW)))
    store = MemoryStore(statement=statement)
    store.offsets[PLACE] = StoredOffset("cluster", 0)
    async with worker(log, store, Letters()) as (health, _):

        def note_and_end() -> None:
            outages.append(dict(health.outages))
            log.revoke()

        log.on_idle = note_and_end
        await log.revoked.wait()

    assert (unanswered, outages) == ([], [{}])
    assert store.offsets[PLACE].next_offset == 1


async def test_a_partition_that_stopped_at_the_end_of_the_log_is_ready_once_its_offset_is_set_there() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()
    store.offsets[PLACE] = StoredOffset("cluster", 1)
    log.unreadable = 1
    stopped: list[list[str]] = []

    def no_record_comes() -> None:
        stopped.append(list(health.stopped.values()))
        log.revoke()

    def the_operator_sets_it() -> None:
        stopped.append(list(health.stopped.values()))
        log.unreadable, log.on_idle = None, no_record_comes
        store.offsets[PLACE] = StoredOffset("cluster", 1, mark=5)

    log.on_wait = the_operator_sets_it
    async with worker(log, store, Letters()) as (health, _):
        await log.revoked.wait()

    assert stopped == [["cannot be read"], []]


class Unacknowledged(Letters):
    """A dead-letter topic that lacks replicas: its producer tries again and again, without an error."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledged = asyncio.Event()

    async def send(self, letters: Sequence[DeadLetter]) -> None:
        await self.acknowledged.wait()
        await super().send(letters)


async def test_a_partition_whose_dead_letters_are_not_acknowledged_is_not_ready_until_they_are() -> None:
    log, letters = FakeLog([b"no JSON", *encoded(message(at=NOW))]), Unacknowledged()

    async with worker(log, MemoryStore(), letters) as (health, running):
        await asyncio.sleep(UNACKNOWLEDGED_SECONDS - 1)
        at_first = dict(health.outages)
        await asyncio.sleep(2)
        later = dict(health.outages)
        letters.acknowledged.set()
        await running

    assert (at_first, later) == ({}, {"events[0]": "the dead-letter topic acknowledges nothing"})
    assert health.outages == {}
    assert (len(letters.sent), log.applied_to, log.paused) == (1, [2], 1)
