"""Whether records are on the partition of their key: another partitioner loses the order across producers."""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import structlog
from aiokafka import ConsumerRecord
from aiokafka.partitioner import murmur2
from msgspec import Struct
from msgspec.json import Decoder

from consumer.observability.metrics import Metrics

log = structlog.get_logger(__name__)

MAX_KEY_BYTES = 800
"""No valid key is longer: 200 characters in UTF-8."""
MAX_WARNINGS = 100
EXAMINED = 10
"""Misplaced records of a fetch whose `source` is looked at."""
REMEDY = (
    "let every producer partition by murmur2 as Java does: librdkafka (confluent-kafka, node-rdkafka) "
    "partitioner=murmur2_random; sarama (FNV-1a by default) NewCustomPartitioner(WithAbsFirst(), "
    "WithCustomHashFunction(murmur2)); kafkajs Partitioners.DefaultPartitioner (2.x) or JavaCompatiblePartitioner "
    "(1.x), not LegacyPartitioner; franz-go and Java: their default"
)


class _Sourced(Struct):
    source: str


_decoded = Decoder(_Sourced).decode


@lru_cache(maxsize=65536)
def home_of(key: bytes, partitions: int) -> int:
    """The partition that Java's and aiokafka's default partitioner give a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def misplaced(
    records: Iterable["ConsumerRecord[bytes, bytes]"], partition: int, partitions: int
) -> list["ConsumerRecord[bytes, bytes]"]:
    """Those of a partition's records whose key belongs on another one. Records without a key belong anywhere."""
    return [
        record
        for record in records
        if (key := record.key) is not None and len(key) <= MAX_KEY_BYTES and home_of(key, partitions) != partition
    ]


class Placement:
    """Counts misplaced records, and warns once of each topic and `source`."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._warned: set[tuple[str, str]] = set()

    def check(
        self, topic: str, partition: int, partitions: int, records: Sequence["ConsumerRecord[bytes, bytes]"]
    ) -> None:
        if not (found := misplaced(records, partition, partitions)):
            return
        self._metrics.misplaced.labels(topic).inc(len(found))
        for record in found[:EXAMINED]:
            self._warn_once(topic, _source(record))

    def _warn_once(self, topic: str, source: str) -> None:
        if len(self._warned) >= MAX_WARNINGS or (topic, source) in self._warned:
            return
        self._warned.add((topic, source))
        log.warning(
            "records are not on the partition of their key: their order among other producers' records is lost",
            topic=topic,
            source=source,
            remedy=REMEDY,
        )


def _source(record: "ConsumerRecord[bytes, bytes]") -> str:
    """The record's `source`, in either content mode; empty where it cannot be read."""
    for name, content in record.headers:
        if name.lower() == "ce_source":
            return (content or b"").decode(errors="replace")[:200]
    try:
        return _decoded(record.value or b"").source[:200]
    except (ValueError, RecursionError):  # not JSON, not of this shape, or not UTF-8
        return ""
