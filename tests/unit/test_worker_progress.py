"""One partition's life on fakes: where a worker starts, how it goes on, what it waits for."""

from random import Random

import pytest
from structlog.testing import capture_logs

from consumer.errors import RefusedError, TooSlowError, UnavailableError
from consumer.offsets import Partition, StoredOffset
from consumer.service.ports import Decided
from consumer.worker import IDLE_SECONDS, RECHECK_SECONDS, SLOW_SECONDS
from schemas import Reason
from tests.builders import message
from tests.fakes import MemoryStore
from tests.unit.worker_on_fakes import NOW, PLACE, SETTINGS, FakeLog, Letters, Troubled, encoded, fails, worker

pytestmark = pytest.mark.virtual_time


async def test_a_worker_seeks_once_and_goes_on_from_batch_to_batch_within_its_limit() -> None:
    events = [message(at=NOW, conversation_id=f"c-{number}") for number in range(6)]
    log, store = FakeLog(encoded(*events)), MemoryStore()

    async with worker(log, store, Letters(), SETTINGS.model_copy(update={"max_batch": 2})):
        await log.revoked.wait()

    assert log.sought == [0]
    assert log.limits == [2, 2, 2]
    assert log.applied_to == [2, 4, 6]


async def test_a_batch_of_one_is_the_smallest() -> None:
    log, store = FakeLog(encoded(*(message(at=NOW) for _ in range(4)))), Troubled(fails(5, TooSlowError("timeout")))

    async with worker(log, store, Letters()):
        await log.revoked.wait()

    assert log.limits[1:6] == [2, 1, 1, 1, 1]
    assert log.limits[6] == 2
    assert all(0 <= seconds <= SLOW_SECONDS for seconds in log.waits)
    assert store.offsets[PLACE].next_offset == 4


async def test_an_idle_partition_compares_the_stored_offset_and_stays_where_it_is() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()

    def revoke_later() -> None:
        if len(log.idle_waits) == 5:
            log.revoke()

    log.on_idle = revoke_later
    async with worker(log, store, Letters()):
        await log.revoked.wait()

    assert log.idle_waits == [IDLE_SECONDS] * 5
    assert log.sought == [0]


async def test_an_offset_of_another_cluster_stops_the_partition_until_it_is_set() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()
    store.offsets[PLACE] = StoredOffset("another", 1)
    reasons: list[str] = []

    async with worker(log, store, Letters()) as (health, _):

        def mend() -> None:
            reasons.extend(health.stopped.values())
            store.offsets[PLACE] = StoredOffset("cluster", 0)

        log.on_wait = mend
        await log.revoked.wait()
        assert health.stopped == {}

    (reason,) = reasons
    assert reason.startswith("the stored offset counts in cluster another, not cluster: run `conversation-consumer ")
    assert log.waits == [RECHECK_SECONDS]
    assert log.sought == [0]


class CreatedMeanwhile(MemoryStore):
    """Another owner makes the row after this one has looked for it."""

    async def create_offset(self, partition: Partition, offset: StoredOffset) -> None:
        await super().create_offset(partition, StoredOffset("cluster", 1))
        await super().create_offset(partition, offset)


async def test_a_first_owner_goes_on_where_another_one_has_begun() -> None:
    log, store = FakeLog(encoded(message(at=NOW), message(at=NOW))), CreatedMeanwhile()

    async with worker(log, store, Letters()):
        await log.revoked.wait()

    assert log.sought == [1]
    assert [row.version for row, _ in store.rows["c-1"]] == [1]


async def test_an_outage_pauses_the_partition_and_makes_the_replica_not_ready_until_it_is_over() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), Troubled(fails(3, UnavailableError("the database is down")))
    during: list[dict[str, str]] = []
    after: list[dict[str, str]] = []
    async with worker(log, store, Letters()) as (health, _):

        def idle() -> None:
            after.append(dict(health.outages))
            log.revoke()

        log.on_wait = lambda: during.append(dict(health.outages))
        log.on_idle = idle
        await log.revoked.wait()

    assert during == [{"events[0]": "the database is down"}] * 3
    assert log.paused == 3
    assert all(0 <= seconds <= SETTINGS.outage_backoff_max_seconds for seconds in log.waits)
    assert after == [{}]


class Highest(Random):
    """Draws the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


async def test_the_longer_an_outage_lasts_the_less_often_it_is_tried_up_to_a_limit() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), Troubled(fails(6, UnavailableError("the database is down")))
    settings = SETTINGS.model_copy(update={"outage_backoff_max_seconds": 1.0})

    async with worker(log, store, Letters(), settings, Highest()):
        await log.revoked.wait()

    assert log.waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


async def test_the_log_names_an_outage_once_and_says_when_it_is_over() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), Troubled(fails(3, UnavailableError("the database is down")))

    with capture_logs() as lines:
        async with worker(log, store, Letters()):
            await log.revoked.wait()

    told = [line for line in lines if "outage" in line["event"]]
    assert [line["event"] for line in told] == ["outage: partition paused", "outage over"]
    assert told[0]["error"] == "the database is down"


async def test_a_refused_event_is_a_dead_letter_that_names_it() -> None:
    refused = message(at=NOW, conversation_id="refused")

    def trouble(decided: Decided) -> None:
        if any(change.after.id == "refused" for change in decided.changes):
            raise RefusedError("never")

    log, store, letters = FakeLog(encoded(refused)), Troubled(trouble), Letters()
    async with worker(log, store, letters) as (health, _):
        await log.revoked.wait()
        (line,) = health.last_dead_letters

    (letter,) = letters.sent
    assert (letter.reason, letter.error) == (Reason.REFUSED, "PostgreSQL refused a value")
    assert letter.event_id == refused.event_id
    assert line.endswith(" refused")


async def test_a_partition_that_is_given_up_while_it_is_stopped_leaves_no_trace() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()
    log.unreadable = 0
    log.on_wait = log.revoke

    async with worker(log, store, Letters()) as (health, running):
        await running

    assert health.stopped == {}


async def test_a_replica_is_ready_as_soon_as_a_record_comes_that_could_not_be_read_before() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), MemoryStore()
    log.unreadable = 0
    stopped: list[dict[str, str]] = []

    async with worker(log, store, Letters()) as (health, _):

        def mend() -> None:
            stopped.append(dict(health.stopped))
            log.unreadable = None

        def idle() -> None:
            stopped.append(dict(health.stopped))
            log.revoke()

        log.on_wait, log.on_idle = mend, idle
        await log.revoked.wait()

    assert stopped == [{"events[0]": "cannot be read"}, {}]


async def test_a_replica_is_ready_as_soon_as_the_database_is_quick_enough() -> None:
    log, store = FakeLog(encoded(message(at=NOW))), Troubled(fails(1, TooSlowError("timeout")))
    outages: list[dict[str, str]] = []

    async with worker(log, store, Letters()) as (health, _):

        def idle() -> None:
            outages.append(dict(health.outages))
            log.revoke()

        log.on_wait = lambda: outages.append(dict(health.outages))
        log.on_idle = idle
        await log.revoked.wait()

    assert outages == [{"events[0], writing": "timeout"}, {}]
