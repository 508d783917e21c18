"""Apache Kafka brokers that replicate, each behind a fault proxy of its own."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from tests.stack.kafka_broker import KafkaBroker, new_cluster_id
from tests.stack.process import DevstackError, free_port
from tests.stack.proxy import Proxy

JVM_FLAGS = ["-Xmx256m", "-Xss512k", "-XX:ReservedCodeCacheSize=64m"]
ANSWER_MILLISECONDS = 1000
PROPERTIES = """
node.id={node}
controller.quorum.voters={voters}
listeners=CLIENTS://127.0.0.1:{port},BROKERS://127.0.0.1:{broker_port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=CLIENTS://127.0.0.1:{proxy_port},BROKERS://127.0.0.1:{broker_port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,BROKERS:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKERS
default.replication.factor={replicas}
min.insync.replicas={in_sync}
offsets.topic.replication.factor={replicas}
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
# A broker that was killed or frozen loses its partitions within 3 s, the shortest session of a consumer here, not 9 s:
# acks=all waits as long. Heartbeats are frequent enough that two may be late on a busy machine.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
# A follower that cannot keep up leaves the in-sync replicas within 5 s, not 30 s: one whose network alone is ill keeps
# its session, and would hold acks=all back for as long.
replica.lag.time.max.ms=5000
# A follower gives a frozen leader up within 3 s, not 30 s.
replica.socket.timeout.ms=3000
# The cleaner's default buffer alone is half of the heap; one segment of offsets must fit into it.
log.cleaner.dedupe.buffer.size=16777216
offsets.topic.segment.bytes=16777216
# Abandoned transactions are aborted soon after their time, not within ten seconds.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
num.io.threads=4
background.threads=2
"""


class KafkaCluster:
    """Brokers 0, 1, 2 ..., combined with their controllers. Topics have three replicas, two of which must be in sync.

    Clients reach each broker through its proxy, brokers each other directly: a fault of a proxy is one of clients only.
    Operations that start or end brokers take seconds and leave the event loop free.
    """

    def __init__(self, proxies: list[Proxy], internal_ports: Sequence[int]) -> None:
        self._brokers: list[KafkaBroker] = []
        self._proxies = proxies
        self._internal_ports = internal_ports
        self._frozen: set[int] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, brokers: int = 3, overrides: str = "") -> AsyncIterator["KafkaCluster"]:
        """Once all brokers take part. `overrides` are properties of each that come after ours."""
        async with AsyncExitStack() as stack:
            ports = [free_port() for _ in range(brokers)]
            proxies = [await stack.enter_async_context(Proxy.open("127.0.0.1", port)) for port in ports]
            cluster = cls(proxies, [free_port() for _ in range(brokers)])
            stack.push_async_callback(cluster._stop)
            cluster_id = new_cluster_id()
            proxied = [proxy.port for proxy in proxies]
            properties = [each + overrides for each in _properties(ports, proxied, cluster._internal_ports)]
            # Together: none of them answers before most of them are there.
            starts = [
                asyncio.to_thread(KafkaBroker, port, text, (), JVM_FLAGS, cluster_id)
                for port, text in zip(ports, properties, strict=True)
            ]
            started = await asyncio.gather(*starts, return_exceptions=True)
            cluster._brokers = [each for each in started if isinstance(each, KafkaBroker)]
            for failed in (each for each in started if isinstance(each, BaseException)):
                raise failed
            await cluster.complete()
            yield cluster

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"127.0.0.1:{proxy.port}" for proxy in self._proxies)

    @property
    def direct_servers(self) -> str:
        """Past the proxies, as the brokers reach each other."""
        return ",".join(f"127.0.0.1:{port}" for port in self._internal_ports)

    @property
    def count(self) -> int:
        return len(self._brokers)

    def pid(self, i: int) -> int:
        """0 while the broker is down."""
        return self._brokers[i].pid

    def proxy(self, i: int) -> Proxy:
        """Between the clients and this broker."""
        return self._proxies[i]

    def log(self, i: int) -> str:
        """What the broker has printed."""
        return self._brokers[i].log()

    async def restart(self, i: int, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ends the broker and starts it again: SIGTERM hands its partitions over first, SIGKILL is a crash."""
        await self.kill(i, with_signal)
        await self.start(i)

    async def kill(self, i: int, with_signal: signal.Signals = signal.SIGKILL) -> None:
        """The broker is away until `start`. Its data stay."""
        await asyncio.to_thread(self._brokers[i].end, with_signal)
        self._frozen.discard(i)

    async def start(self, i: int) -> None:
        """Waits until the broker answers, which takes most of the brokers: after a total outage start them together."""
        await asyncio.to_thread(self._brokers[i].start_again)

    def freeze(self, i: int) -> None:
        self._frozen.add(i)
        self._brokers[i].freeze()

    def thaw(self, i: int) -> None:
        self._brokers[i].thaw()
        self._frozen.discard(i)

    async def leader(self, topic: str, partition: int = 0) -> int:
        """Which broker leads the partition; -1 while none does. Of `__consumer_offsets`: the coordinator of groups."""
        return int((await self._partition(topic, partition)).get("leader", -1))

    async def in_sync(self, topic: str, partition: int = 0) -> set[int]:
        """The brokers whose replicas are in sync; empty while there is no such partition."""
        return set((await self._partition(topic, partition)).get("isr", ()))

    async def complete(self, timeout_seconds: float = 60) -> None:
        """Waits until every broker takes part. Raises `DevstackError` where that takes too long."""
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        while len((await self._metadata())["brokers"]) < len(self._brokers):
            if asyncio.get_running_loop().time() > deadline:
                raise DevstackError(f"not every broker took part within {timeout_seconds:.0f} s")
            await asyncio.sleep(0.1)

    async def _partition(self, topic: str, partition: int) -> dict[str, Any]:
        (described,) = (await self._metadata(topic))["topics"] or ({"partitions": []},)
        return next((each for each in described["partitions"] if each["partition"] == partition), {})

    async def _metadata(self, *topics: str) -> dict[str, Any]:
        """As the first broker that answers sees it; without its proxy, which may be ill."""
        for i, broker in enumerate(self._brokers):
            if broker.pid and i not in self._frozen:
                with suppress(OSError, TimeoutError, KafkaError):
                    connection = await create_conn("127.0.0.1", broker.port, request_timeout_ms=ANSWER_MILLISECONDS)
                    try:
                        answer: dict[str, Any] = (await connection.send(MetadataRequest(list(topics)))).to_object()
                        return answer
                    finally:
                        connection.close()
        return {"brokers": [], "topics": []}

    async def _stop(self) -> None:
        # Killed: their data go anyway, and one that is told to end would look for others to hand its partitions to.
        await asyncio.gather(*(asyncio.to_thread(_kill, broker) for broker in self._brokers))


def _kill(broker: KafkaBroker) -> None:
    broker.end(signal.SIGKILL)
    broker.stop()


def _properties(ports: Sequence[int], proxy_ports: Sequence[int], internal_ports: Sequence[int]) -> Iterator[str]:
    """Of each broker."""
    controllers = [free_port() for _ in ports]
    voters = ",".join(f"{node}@127.0.0.1:{port}" for node, port in enumerate(controllers))
    each = zip(ports, proxy_ports, internal_ports, controllers, strict=True)
    for node, (port, proxy_port, internal_port, controller) in enumerate(each):
        yield PROPERTIES.format(
            node=node,
            voters=voters,
            port=port,
            proxy_port=proxy_port,
            broker_port=internal_port,
            controller_port=controller,
            replicas=min(3, len(ports)),
            in_sync=min(2, len(ports)),
        )
