"""Planted bugs in what the consumer makes of Kafka: its log, its clusters, its outages, its acknowledgements."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial

from consumer.errors import PartitionStoppedError, TooSlowError, UnavailableError
from consumer.kafka.partition import AssignedPartition, State
from consumer.kafka.producer import KafkaProducer
from consumer.records import DeadLetter
from consumer.worker import RECHECK_SECONDS, PartitionWorker
from tests.fakes import MemoryStore
from tests.memory_database import Transaction
from tests.simulation import processes, replica
from tests.simulation.replacing import replaced
from tests.simulation.replica import ObservedLog


class FromTheEnd(ObservedLog):
    """A partition without a stored offset starts at the end of the log."""

    async def bounds(self) -> tuple[int, int]:
        first, end = await super().bounds()
        return (first if self.partition in self._process.store.offsets else end), end


class AnyCluster(ObservedLog):
    """Takes an offset that counts in another cluster for one of this."""

    async def cluster_id(self) -> str:
        found = await super().cluster_id()
        stored = self._process.store.offsets.get(self.partition)
        return stored.cluster_id if stored else found


class FromTheFirst(PartitionWorker):
    """A partition whose stored offset is outside the log goes on with the first record that there is."""

    async def _seek_to_stored_offset(self) -> None:
        try:
            await super()._seek_to_stored_offset()
        except PartitionStoppedError:
            first, _ = await self._source.bounds()
            stored = await self._store.stored_offset(self._source.partition)
            if stored is None or stored.cluster_id != await self._source.cluster_id():
                raise
            self._next_offset, self._mark = stored.next_offset, stored.mark
            self._source.seek(first)


class SilentStop(PartitionWorker):
    """A partition that stops tells nobody."""

    async def _stop(self, error: PartitionStoppedError) -> None:
        await self._sleep(RECHECK_SECONDS)


class NeedsKafkaAtOnce(PartitionWorker):
    """Gives the partition up if no broker answers at its assignment."""

    async def _start(self) -> None:
        try:
            await self._source.bounds()
        except UnavailableError:
            return
        await super()._start()


class CommitTakenForGranted(MemoryStore):
    """Takes a commit without an answer for one that has worked."""

    async def commit(self, transaction: Transaction) -> None:
        with suppress(TooSlowError):
            await super().commit(transaction)


def seek_without_clearing(partition: AssignedPartition, offset: int) -> None:
    """Keeps what is buffered: after a rewind, newer records come before those that are missing."""
    partition._oldest = None
    partition._enter(State.FETCHING)
    partition.next_offset = offset
    partition._fetch_from(offset)


async def send_without_waiting(producer: KafkaProducer, dead_letters: Sequence[DeadLetter]) -> None:
    for dead_letter in dead_letters:
        acknowledged: asyncio.Future[object] = await producer._enqueue(await producer._started(), dead_letter)
        acknowledged.add_done_callback(lambda done: done.cancelled() or done.exception())


log = partial(replaced, replica, "ObservedLog")
worker = partial(replaced, replica, "PartitionWorker")
BUGS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "offset reset to latest": partial(log, FromTheEnd),
    "offset outside the log reset to the first": partial(worker, FromTheFirst),
    "another cluster not noticed": partial(log, AnyCluster),
    "partition that stops without saying so": partial(worker, SilentStop),
    "partition given up while Kafka is away": partial(worker, NeedsKafkaAtOnce),
    "timeout at commit taken for success": partial(replaced, processes, "MemoryStore", CommitTakenForGranted),
    "seek that keeps the buffer": partial(replaced, AssignedPartition, "seek", seek_without_clearing),
    "dead letters not awaited": partial(replaced, KafkaProducer, "send", send_without_waiting),
}
