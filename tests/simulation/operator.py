"""The operator, who looks after partitions that say that they are stopped."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from consumer.errors import ConnectionLostError, ContentionError, UnavailableError
from consumer.offsets import Partition, StoredOffset
from tests.simulation.processes import Process
from tests.simulation.replica import Replica
from tests.simulation.world import GROUP, World


class Operator(Process):
    """Runs `offsets set TOPIC PARTITION start --yes` for each of them; again if that failed."""

    def __init__(self, world: World, replicas: Callable[[], Sequence[Replica]]) -> None:
        super().__init__(world, "operator")
        self._replicas = replicas
        self.spawn(self._run())

    def crash(self) -> None:
        """Ends the command; the next one is another process."""
        self._end_transactions()
        raise ConnectionLostError("the command was killed")

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self.world.rng.expovariate(1 / 5))
            for name in sorted(self._stopped()):
                topic, _, number = name.removesuffix("]").rpartition("[")
                await self._set(Partition(GROUP, topic, int(number)))

    def _stopped(self) -> Iterable[str]:
        """What replicas that are in touch with Kafka say of themselves."""
        return {name for replica in self._replicas() if replica.hears for name in replica.health.stopped}

    async def _set(self, partition: Partition) -> None:
        try:
            await self.reach("start of the log")
            cluster = self.world.reach_kafka()
            first = cluster.partitions[partition.number].first
            await self.store.set_offset(partition, StoredOffset(cluster.name, first))
        except (UnavailableError, ContentionError) as error:
            self.world.tell(self.name, f"{partition.number} not set: {error}")
        else:
            self.world.tell(self.name, f"has set {partition.number} to {first} in {cluster.name}")
