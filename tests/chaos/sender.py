"""Who writes during a storm: upstream's producer, and programs that use the service beside the consumer."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from random import Random

from pydantic import SecretStr

from consumer.errors import ConcurrencyError, UnavailableError
from consumer.kafka.producer import KafkaProducer
from consumer.lifecycle.model import Event
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings, KafkaSettings
from tests.checker.ledger import Key, Ledger, key_of
from tests.traffic import SHORT_POLICY, Traffic

TICKS_PER_SECOND = 10
RETRY_SECONDS = 0.2
ATTEMPT_SECONDS = 10.0
"""How long a send may take before its producer is given up for another: what it has sent comes twice then."""

RECENT = 500

Record = tuple[bytes | None, bytes | None]


class Sender:
    """Publishes at a rate; what it was given is sent until it is acknowledged, and so perhaps more than once."""

    def __init__(self, kafka: KafkaSettings, traffic: Traffic, rate: float) -> None:
        self.rate = rate
        self.sent = 0
        self.recent: deque[Record] = deque(maxlen=RECENT)
        self.traffic = traffic
        self._kafka = kafka
        self._stopping = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._producer: KafkaProducer | None = None
        self._open = AsyncExitStack()

    async def run(self) -> None:
        """Until `stop`."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._stopping.is_set():
            due = max(due + 1 / TICKS_PER_SECOND, loop.time() - 1)
            await self.send(self.traffic.records(max(1, round(self.rate / TICKS_PER_SECOND))))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), max(0, due - loop.time()))
        await self._open.aclose()

    def stop(self) -> None:
        self._stopping.set()

    async def send(self, records: Sequence[Record]) -> None:
        """Returns once all are acknowledged."""
        async with self._one_at_a_time:
            while not await self._are_acknowledged(records):
                self._producer = None
                await asyncio.sleep(RETRY_SECONDS)
            self.sent += len(records)
            self.recent.extend(records)

    async def _are_acknowledged(self, records: Sequence[Record]) -> bool:
        with suppress(UnavailableError, TimeoutError):
            async with asyncio.timeout(ATTEMPT_SECONDS):
                await self._publish(records)
                return True
        return False

    async def _publish(self, records: Sequence[Record]) -> None:
        if self._producer is None:
            await self._open.aclose()
            self._producer = await self._open.enter_async_context(KafkaProducer.open(self._kafka))
        await self._producer.publish(self._kafka.topics[0], records)


@dataclass
class Written:
    """What the service has acknowledged to its callers, in order of time: a failover may take it back."""

    ledger: Ledger
    recent: list[tuple[float, Key]] = field(default_factory=list)

    def note(self, event: Event) -> None:
        self.recent.append((asyncio.get_running_loop().time(), key_of(event)))
        self.ledger.note_written(event)

    def take_back(self, since: float) -> None:
        """A failover has lost commits from then on: nobody knows any more which of these were written."""
        lost = {key for at, key in self.recent if at >= since}
        self.ledger.unsure |= lost
        self.ledger.events -= lost
        self.ledger.written -= lost


class Caller:
    """A program that writes through the service, and calls again until it knows that it has written."""

    def __init__(self, name: str, traffic: Traffic, written: Written, rate: float) -> None:
        self._name = name
        self._traffic = traffic
        self._written = written
        self._rate = rate
        self._stopping = asyncio.Event()

    async def run(self, database: str, keys: Sequence[str] | None = None) -> None:
        """Until `stop`."""
        random = Random(self._name)
        async with PostgresStore.open(DatabaseSettings(url=SecretStr(database), writers=2)) as store:
            service = ConversationService(store, policy=SHORT_POLICY.policy, writers=2)
            while not self._stopping.is_set():
                await asyncio.sleep(random.expovariate(self._rate))
                await self._insist(service, self._traffic.event(random.choice(keys or self._traffic.hot), self._name))

    def stop(self) -> None:
        self._stopping.set()

    async def _insist(self, service: ConversationService, event: Event) -> None:
        self._written.ledger.unsure.add(key_of(event))
        while True:
            try:
                await service.apply([event])
            except (UnavailableError, ConcurrencyError):
                await asyncio.sleep(RETRY_SECONDS)
            else:
                break
        self._written.note(event)
