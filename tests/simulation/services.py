"""What befalls PostgreSQL and Kafka as a whole. Each act takes its time, and others come in between."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from consumer.errors import ConnectionLostError
from consumer.offsets import Partition
from tests.fakes import MemoryStore
from tests.simulation.topic import TOPIC
from tests.simulation.world import GROUP, Fault, World

PATIENT_SECONDS = 10.0
"""How long retention waits for a partition to fall behind."""


class Services:
    """Acts on the services of a world."""

    def __init__(self, world: World, conversations: Sequence[str]) -> None:
        self._world = world
        self._conversations = conversations

    async def database_outage(self) -> None:
        self._world.outage_until = self._world.time + self._world.rng.uniform(0, 10)

    async def rewind(self) -> None:
        world = self._world
        world.back_up()
        await asyncio.sleep(world.rng.expovariate(1 / 2))
        assert world.backup is not None
        world.struck[Fault.REWIND] += world.database.offsets != world.backup.offsets
        world.rewind()

    async def set_the_clock(self) -> None:
        self._world.skew_seconds += self._world.rng.uniform(-5, 5)

    async def hold_rows(self) -> None:
        """An outsider's transaction on some rows."""
        outsider, rng = MemoryStore(self._world.database), self._world.rng
        with suppress(ConnectionLostError):
            async with outsider.transaction() as transaction:
                for key in rng.sample(self._conversations, rng.randint(1, len(self._conversations))):
                    await transaction.lock(key, wait=False)
                await asyncio.sleep(rng.choice((0.05, 0.5, 3)))

    async def kafka_outage(self) -> None:
        brokers = self._world.kafka.brokers
        brokers.fail()
        await asyncio.sleep(self._world.rng.uniform(0, 10))
        brokers.heal()

    async def retention(self) -> None:
        """Deletes the oldest records of a partition: all that is applied, and some that are not yet."""
        world, number = self._world, self._world.rng.randrange(self._world.shape.partitions)
        limit = world.time + PATIENT_SECONDS
        while world.time < limit:
            await asyncio.sleep(0.2)
            records, needed = world.kafka.partitions[number], world.needed_from(Partition(GROUP, TOPIC, number))
            unread = [record for record in records.kept() if record.offset >= needed]
            if needed and unread:
                last = world.rng.choice(unread)
                world.kafka.delete_before(number, records.offset_of(last) + 1)
                world.struck[Fault.RETENTION] += 1
                world.tell("Kafka", f"has deleted [{number}] before {records.first}")
                return
