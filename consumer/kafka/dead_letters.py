"""Dead letters as an operator sees them: read from their topic, replayed to the topic that they came from.

A replayed dead letter stays where it is; a marker after it, a record without a value, says that it was replayed.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from time import time

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumer.errors import ConfigurationError
from consumer.kafka.admin import admin
from consumer.kafka.errors import classified
from consumer.kafka.producer import FACTS, HEADER, KafkaProducer
from consumer.kafka.reading import reader, records_before
from consumer.records import Record
from consumer.settings import KafkaSettings

MARKER = "__consumer.replayed."
Position = tuple[int, int]
"""Where a dead letter lies in its own topic: (partition, offset)."""


@dataclass(frozen=True, slots=True)
class StoredDeadLetter:
    """A dead letter in its topic. `record` is what was refused, byte for byte, where it lay then."""

    position: Position
    at: datetime
    record: Record
    group: str
    reason: str
    error: str
    value_bytes: int

    def without_body(self) -> "StoredDeadLetter":
        """The same, of a record that lost its value and headers."""
        return replace(self, record=self.record._replace(value=None, headers=()))


@dataclass(frozen=True, slots=True)
class ReplayMarker:
    """Says that the dead letter at `position` was replayed."""

    position: Position
    at: datetime


async def read(
    settings: KafkaSettings, since: datetime | None = None
) -> AsyncIterator[StoredDeadLetter | ReplayMarker]:
    """What the dead-letter topic holds by now, from the dead letters of `since` on.

    Records that this service did not write are left out. Raises `ConfigurationError` if there is no such topic, and
    `UnavailableError`.
    """
    topic = settings.dead_letter_topic
    async with admin(settings) as brokers:
        partitions = (await brokers.topics()).get(topic)
    if partitions is None:
        raise ConfigurationError(
            f"topic {topic} does not exist: run `conversation-consumer topics`, "
            "or check CONSUMER_KAFKA__DEAD_LETTER_TOPIC"
        )
    places = [TopicPartition(topic, number) for number in range(partitions)]
    async with reader(settings) as client:
        with classified():
            async for record in _records(client, places, since):
                if found := _parse(record):
                    yield found


async def replay(producer: KafkaProducer, settings: KafkaSettings, letters: Sequence[StoredDeadLetter]) -> None:
    """Publishes the records again as they were, then marks their dead letters. Returns when both are acknowledged.

    A crash in between leaves them unmarked; replayed twice, an event still has one effect.
    """
    await producer.send_records([letter.record for letter in letters])
    await producer.send_records([_marker(settings.dead_letter_topic, letter) for letter in letters])


async def _records(
    client: AIOKafkaConsumer, partitions: Sequence[TopicPartition], since: datetime | None
) -> AsyncIterator["ConsumerRecord[bytes, bytes]"]:
    """Every committed record between the start, or the first of `since`, and the ends of now."""
    client.assign(partitions)
    ends = await client.end_offsets(partitions)
    first = await client.beginning_offsets(partitions)
    if since is not None:
        milliseconds = max(0, int(since.timestamp() * 1000))
        found = await client.offsets_for_times(dict.fromkeys(partitions, milliseconds))
        first = {tp: at.offset if (at := found[tp]) else ends[tp] for tp in partitions}
    for tp in partitions:
        client.seek(tp, first[tp])
    for tp in partitions:
        async for records, _ in records_before(client, tp, ends[tp]):
            for record in records:
                yield record


def _parse(record: "ConsumerRecord[bytes, bytes]") -> StoredDeadLetter | ReplayMarker | None:
    """The inverse of `KafkaProducer.send`: the last headers are ours, those before them were there."""
    at = datetime.fromtimestamp(record.timestamp / 1000, UTC)
    before, ours = record.headers[: -len(FACTS)], record.headers[-len(FACTS) :]
    try:
        notes = {name: (value or b"").decode() for name, value in ours}
        if MARKER + "offset" in notes:
            return ReplayMarker((int(notes[MARKER + "partition"]), int(notes[MARKER + "offset"])), at)
        topic, partition, offset, timestamp, group, reason, error = (notes[HEADER + fact] for fact in FACTS)
        numbers = int(partition), int(offset), int(timestamp)
    except (KeyError, ValueError):
        return None
    origin = Record(topic, *numbers, record.key, record.value, tuple(before))
    return StoredDeadLetter(
        (record.partition, record.offset), at, origin, group, reason, error, len(record.value or b"")
    )


def _marker(topic: str, letter: StoredDeadLetter) -> Record:
    partition, offset = letter.position
    headers = ((MARKER + "partition", str(partition).encode()), (MARKER + "offset", str(offset).encode()))
    return Record(topic, 0, 0, int(time() * 1000), letter.record.key, None, headers)
