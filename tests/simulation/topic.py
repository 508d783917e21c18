"""The topic as a cluster has it: records, what retention has deleted, and copies of it in other clusters."""

from collections.abc import Mapping, Sequence
from random import Random

from aiokafka import TopicPartition

from consumer.records import Record
from tests.checker.ledger import place_of
from tests.memory_kafka.cluster import MemoryCluster

TOPIC, DEAD_LETTERS = "events", "dead-letters"


class PartitionRecords:
    """A partition in one cluster. `original` offsets are those of the first cluster, and go on through all copies."""

    def __init__(self, first: int = 0, original: int = 0) -> None:
        self.first = self.end = first
        self._records: list[Record] = []
        self._originals: list[Record] = []
        self._original_end = original

    def append(self, original: Record, offset: int) -> Record:
        """Takes a record at `offset`, as it is at its original place; returns it as it lies here."""
        record = original._replace(offset=offset)
        self._records.append(record)
        self._originals.append(original)
        self.end, self._original_end = offset + 1, original.offset + 1
        return record

    def delete_before(self, offset: int) -> None:
        """As retention does: whoever asks for what lies before it is refused."""
        self.first = offset

    def since(self, offset: int) -> Sequence[Record]:
        """What can be fetched from `offset` on."""
        offset = max(offset, self.first)
        return [record for record in self._records if record.offset >= offset]

    def between(self, first: int, end: int) -> Sequence[Record]:
        """The originals of what lies or lay there."""
        return [o for record, o in zip(self._records, self._originals, strict=True) if first <= record.offset < end]

    def kept(self) -> Sequence[Record]:
        """The originals of what can be fetched."""
        return self.between(self.first, self.end)

    def original_offset(self, offset: int) -> int:
        """The original offset of the next record from `offset` on, or the one after the last."""
        return next((original.offset for original in self.between(offset, self.end)), self._original_end)

    def offset_of(self, original: Record) -> int:
        """Where a record of `kept` lies here."""
        return self._records[self._originals.index(original)].offset

    def original_of(self, record: Record) -> Record | None:
        """The original of a record that lies or lay here, byte for byte."""
        pairs = zip(self._records, self._originals, strict=True)
        return next((original for here, original in pairs if here[:6] == record[:6]), None)

    def copied(self, rng: Random, needed_from: int) -> "PartitionRecords":
        """As a tool restores it: numbered anew, without gaps, and perhaps without what is no longer needed."""
        kept = self.kept()
        old = sum(original.offset < needed_from for original in kept)
        copy = PartitionRecords(rng.randint(0, 3), self._original_end)
        for original in kept[rng.randint(0, old) :]:
            copy.append(original, copy.end)
        return copy


class Cluster:
    """Kafka, and what lies in its topic."""

    def __init__(self, name: str, partitions: Mapping[int, PartitionRecords]) -> None:
        self.name = name
        self.partitions = partitions
        self.brokers = MemoryCluster()
        self.brokers.create(TOPIC, len(partitions))
        self.brokers.create(DEAD_LETTERS)
        for number, records in partitions.items():
            for record in records.since(0):
                self._append(number, record)
            self._pad(number, records.first)
            self.brokers.delete_before(TopicPartition(TOPIC, number), records.first)

    def append(self, number: int, original: Record, gap: int) -> Record:
        """Takes a record, after a gap; returns it as it lies here."""
        records = self.partitions[number]
        record = records.append(original, records.end + gap)
        self._append(number, record)
        return record

    def _append(self, number: int, record: Record) -> None:
        self._pad(number, record.offset)
        self.brokers.append(TopicPartition(TOPIC, number), record.value, record.key, timestamp=record.timestamp)

    def _pad(self, number: int, offset: int) -> None:
        """Gaps are commit markers, as transactions leave them."""
        tp = TopicPartition(TOPIC, number)
        while self.brokers.log(tp).end < offset:
            self.brokers.append_marker(tp)

    def delete_before(self, number: int, offset: int) -> None:
        self.partitions[number].delete_before(offset)
        self.brokers.delete_before(TopicPartition(TOPIC, number), offset)

    def original_of(self, record: Record) -> Record | None:
        return self.partitions[record.partition].original_of(record)


Places = set[tuple[str, int, int]]


def places(records: Sequence[Record]) -> Places:
    return {place_of(record) for record in records}
