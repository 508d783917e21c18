"""Three minutes of traffic for a real Prometheus to look at: what the picture of the dashboard shows."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from consumer.kafka.producer import KafkaProducer
from consumer.service.service import ConversationService
from tests.checker.ledger import Ledger
from tests.conftest import opened
from tests.demo.demo import Options, publish
from tests.demo.environment import POLL_SECONDS, WAIT_SECONDS, Environment, prepared, until_all_ready
from tests.demo.writers import apply_until_written, concurrent_writer, lock_holder
from tests.stack.prometheus import Prometheus
from tests.stack.replica import Replica
from tests.stack.services import Services
from tests.traffic import SHORT_POLICY, Traffic

EVENTS_PER_SECOND = 400
BURST = 20_000
WRITERS = 3
QUIET_SECONDS = 15


@dataclass(slots=True)
class Recording:
    """A Prometheus that has seen a run; what happened when, as Unix times. The last step is the end.

    `names` of the processes are by their address.
    """

    prometheus: Prometheus
    names: dict[str, str]
    steps: list[tuple[float, str]] = field(default_factory=list)

    def step(self, what: str) -> None:
        self.steps.append((time.time(), what))


class Processes:
    """Two replicas, one that takes over from the first, and a ticker. Whoever was started is stopped at the end."""

    def __init__(self, environment: Environment, stack: AsyncExitStack) -> None:
        self._stack = stack
        logs = [environment.logs / f"replica-{number}.log" for number in range(3)]
        self.first, self.second, self.third = (Replica(environment.settings, log) for log in logs)
        self.ticker = Replica(environment.settings, environment.logs / "ticker.log", "consumer", "ticker")
        self.relay = Replica(environment.settings, environment.logs / "relay.log", "consumer", "outbox")

    @property
    def jobs(self) -> dict[str, list[int]]:
        consumers = [self.first.port, self.second.port, self.third.port]
        return {"consumer": consumers, "ticker": [self.ticker.port], "outbox": [self.relay.port]}

    @property
    def names(self) -> dict[str, str]:
        ports = [self.first.port, self.second.port, self.third.port]
        names = {f"127.0.0.1:{port}": f"replica-{number}" for number, port in enumerate(ports, start=1)}
        return names | {f"127.0.0.1:{self.ticker.port}": "ticker-1", f"127.0.0.1:{self.relay.port}": "relay-1"}

    async def start(self, *processes: Replica) -> None:
        for process in processes:
            self._stack.push_async_callback(process.stop)
            await process.start()
        await until_all_ready([*processes])

    async def replace(self) -> None:
        await self.first.stop()
        await self.start(self.third)


@asynccontextmanager
async def recorded_run(found: Services) -> AsyncIterator[Recording]:
    """Yields the recording of a run that is over."""
    async with prepared(found, None) as environment, AsyncExitStack() as stack:
        processes = Processes(environment, stack)
        recording = Recording(Prometheus(processes.jobs), processes.names)
        stack.callback(recording.prometheus.stop)
        await processes.start(processes.first, processes.second, processes.ticker, processes.relay)
        await _until_scraped(recording.prometheus)
        await play(environment, processes, recording)
        yield recording


async def play(environment: Environment, processes: Processes, recording: Recording) -> None:
    """Steady traffic; writers beside the consumer; a burst; a replica that is replaced; nothing."""
    traffic = Traffic(1, Ledger())
    async with KafkaProducer.open(environment.kafka) as producer:

        async def send(count: int) -> None:
            await producer.publish(environment.topic, traffic.records(count))

        recording.step("the consumer alone")
        await _steady(send, 45)
        recording.step("others write too")
        async with _writers(environment, traffic):
            await _steady(send, 45)
        recording.step("a burst")
        await send(BURST)
        await _steady(send, 25)
        recording.step("a replica is replaced")
        await asyncio.gather(processes.replace(), _steady(send, 35))
        recording.step("quiet")
        await asyncio.sleep(QUIET_SECONDS)
        recording.step("")


async def _until_scraped(prometheus: Prometheus) -> None:
    """Until every counter has been scraped at 0: rates begin where the run does."""
    async with asyncio.timeout(WAIT_SECONDS):
        while await prometheus.value("count(conversation_ready == 1)") != 2:  # noqa: ASYNC110 - it is another process
            await asyncio.sleep(POLL_SECONDS)


async def _steady(send: Callable[[int], Awaitable[None]], seconds: float) -> None:
    await publish(Options(seed=1, events=round(EVENTS_PER_SECOND * seconds), seconds=seconds), send)


@asynccontextmanager
async def _writers(environment: Environment, traffic: Traffic) -> AsyncIterator[None]:
    """Programs that write to the hot conversations, and somebody who holds their rows now and then."""
    stop = asyncio.Event()
    async with opened(environment.database) as store, asyncio.TaskGroup() as group:
        apply = partial(apply_until_written, ConversationService(store, policy=SHORT_POLICY.policy))
        for number in range(WRITERS):
            own = Traffic(number, Ledger())
            group.create_task(concurrent_writer(f"writer-{number}", apply, own, stop))
        group.create_task(lock_holder(environment.database, traffic.hot, stop))
        try:
            yield
        finally:
            stop.set()
