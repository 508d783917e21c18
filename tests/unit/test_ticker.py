"""The ticker on a topic and a database in memory: what a partition that is away costs the others, and what it costs."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from consumer.decoding import decode_all
from consumer.errors import ConfigurationError
from consumer.kafka.placement import home_of
from consumer.lifecycle.model import Tick
from consumer.observability.health import Health
from consumer.observability.metrics import Metrics
from consumer.records import Record
from consumer.service.service import ConversationService
from consumer.settings import TickerSettings
from consumer.ticker import DueTimer, Ticker, encoded
from tests.builders import HOUR, message
from tests.fakes import MemoryStore, MemoryTickTopic
from tests.memory_database import MemoryDatabase
from tests.races import counted

pytestmark = pytest.mark.virtual_time
PARTITIONS = 4
SETTINGS = TickerSettings(batch=100, max_unacknowledged=400)
START = datetime(2026, 3, 1, tzinfo=UTC)


def virtual_now() -> datetime:
    return START + timedelta(seconds=asyncio.get_running_loop().time())


@dataclass
class Subject:
    """A ticker, its topic and its database. Time begins with the test."""

    settings: TickerSettings = SETTINGS
    topic: MemoryTickTopic = field(default_factory=lambda: MemoryTickTopic(PARTITIONS))
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.store = MemoryStore(MemoryDatabase(virtual_now))
        self.ticker = Ticker(self.store, self.topic, self.settings, self.metrics, Health())

    async def let_expire(self, count: int) -> None:
        await ConversationService(self.store).apply(
            [message(at=virtual_now() - 49 * HOUR, conversation_id=f"c-{number}") for number in range(count)]
        )

    async def run_for(self, seconds: float) -> None:
        running = asyncio.create_task(self.ticker.run())
        await asyncio.sleep(seconds)
        self.ticker.stop()
        await running

    def published(self) -> Counter[int]:
        """Ticks by partition."""
        return Counter(home(key.decode()) for key, _ in self.topic.published)

    def ticks(self, result: str) -> float:
        return counted(self.metrics, "conversation_ticks_total", result=result)

    def untouched(self) -> int:
        """Timers that are due."""
        return sum(at <= virtual_now() for at in self.store.database.wake_at.values())


def home(conversation_id: str) -> int:
    return home_of(conversation_id.encode(), PARTITIONS)


def homes(count: int) -> Counter[int]:
    """Partition -> conversations of `let_expire`."""
    return Counter(home(f"c-{number}") for number in range(count))


async def test_the_ticks_of_a_round_are_a_batch_for_each_partition() -> None:
    subject = Subject()
    await subject.let_expire(90)

    await subject.run_for(1)

    assert sorted(subject.topic.batches) == sorted(homes(90).values())
    assert subject.ticks("emitted") == counted(subject.metrics, "conversation_tick_delay_seconds_count") == 90


@pytest.mark.parametrize("conversation_id", ["c-1", 'a "quoted" \\ one', "länger €", "x" * 200])
def test_a_tick_is_decoded_as_the_event_that_it_was(conversation_id: str) -> None:
    now = datetime.now(UTC)

    record = encoded(DueTimer(conversation_id, now, now - HOUR, now))

    (_, event), *others = decode_all([Record("events", 0, 0, 0, *record, ())], 4096)[0]
    assert event == Tick(conversation_id, "ticker", f"{conversation_id}@{now.isoformat()}"[-200:], now)
    assert not others


async def test_a_partition_that_refuses_fails_its_own_ticks_which_come_again() -> None:
    subject = Subject()
    await subject.let_expire(90)
    subject.topic.refuse = {2}

    running = asyncio.create_task(subject.run_for(1000))
    await asyncio.sleep(1)
    others, failed = subject.published(), subject.ticks("failed")
    subject.topic.refuse = set()
    await running

    assert failed == homes(90)[2]
    assert others == homes(90) - Counter({2: 90})
    assert subject.published()[2] == homes(90)[2]


async def test_a_partition_that_is_away_keeps_its_share_and_holds_up_no_other() -> None:
    subject = Subject()
    await subject.let_expire(2000)
    subject.topic.go_away(1)

    running = asyncio.create_task(subject.run_for(10))
    await asyncio.sleep(2)
    soon, failed = subject.published(), subject.ticks("failed")
    subject.topic.come_back(1)
    await running

    assert soon == homes(2000) - Counter({1: 2000})
    assert failed == homes(2000)[1] - 100
    assert subject.published()[1] == 100


async def test_while_kafka_is_away_no_more_timers_are_taken_than_ticks_may_be_unacknowledged() -> None:
    subject = Subject()
    await subject.let_expire(2000)
    subject.topic.go_away(*range(PARTITIONS))

    running = asyncio.create_task(subject.run_for(1200))
    await asyncio.sleep(10)
    untouched = subject.untouched()
    subject.topic.come_back(*range(PARTITIONS))
    await running

    assert untouched >= 2000 - 400 - 100
    assert set(Counter(key for key, _ in subject.topic.published).values()) <= {1, 2}
    assert len({key for key, _ in subject.topic.published}) == 2000


async def test_ticks_without_an_answer_make_room_for_others() -> None:
    subject = Subject(topic=MemoryTickTopic(PARTITIONS, patience_seconds=15))
    await subject.let_expire(10)
    subject.topic.go_away(*range(PARTITIONS))

    await subject.run_for(20)

    assert (subject.ticks("failed"), subject.ticks("emitted")) == (10, 0)


@pytest.mark.parametrize("most", [1, 3, 7])
async def test_every_tick_is_published_however_few_may_be_unacknowledged(most: int) -> None:
    subject = Subject(TickerSettings(batch=100, max_unacknowledged=most))
    await subject.let_expire(50)

    await subject.run_for(100)

    assert subject.published() == homes(50)
    assert max(subject.topic.batches) <= max(1, most // PARTITIONS)


async def test_stopping_waits_for_ticks_in_flight_but_not_for_long() -> None:
    subject = Subject(TickerSettings(drain_seconds=5), MemoryTickTopic(PARTITIONS, patience_seconds=60))
    await subject.let_expire(1)
    subject.topic.go_away(*range(PARTITIONS))

    await subject.run_for(1)
    ended_at = asyncio.get_running_loop().time()
    subject.topic.come_back(*range(PARTITIONS))
    await asyncio.sleep(1)

    assert ended_at == 6
    assert subject.ticks("emitted") == 1


async def test_a_topic_made_anew_with_fewer_partitions_gets_ticks_on_those() -> None:
    subject = Subject()
    await subject.let_expire(20)
    running = asyncio.create_task(subject.run_for(1000))
    await asyncio.sleep(1)
    before = subject.ticks("emitted")

    subject.topic.make(1)
    await running

    assert before == 20
    assert subject.ticks("emitted") >= 40
    assert subject.ticks("failed") == 0


async def test_a_bug_while_publishing_ends_the_ticker() -> None:
    class Broken(MemoryTickTopic):
        async def publish(self, partition: int, ticks: Sequence[tuple[bytes, bytes]]) -> None:
            raise ZeroDivisionError

    subject = Subject(topic=Broken(PARTITIONS))
    await subject.let_expire(1)

    with pytest.raises(ZeroDivisionError):
        await subject.run_for(10)


class WithAnotherPassword(MemoryStore):
    """A new connection is refused, those that are there go on."""

    async def overdue(self) -> int:
        raise ConfigurationError("check the password")


async def test_a_ticker_that_can_never_count_again_ends() -> None:
    subject = Subject()
    ticker = Ticker(WithAnotherPassword(), subject.topic, SETTINGS, subject.metrics, Health())

    running = asyncio.create_task(ticker.run())
    await asyncio.wait([running], timeout=60)

    assert running.done()
    assert isinstance(running.exception(), ConfigurationError)
