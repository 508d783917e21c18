"""Records of the log: bytes in, an event or a dead letter out."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from consumer.contract import to_event
from consumer.conversation import Event
from consumer.plain import plain_event
from schemas import Invalid, Reason, decode
from schemas.cloudevents import MAX_AHEAD


class Record(NamedTuple):
    """A record as it lies in the log, byte for byte. `timestamp` is in milliseconds since 1970."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be applied, and why. `error` never quotes the body."""

    record: Record
    reason: Reason
    error: str


def decode_all(records: Iterable[Record], max_bytes: int) -> tuple[list[tuple[Record, Event]], list[DeadLetter]]:
    """The events of `records`, each beside its record, and what is none. Bad input never costs good input."""
    now = datetime.now(UTC)
    good: list[tuple[Record, Event]] = []
    bad: list[DeadLetter] = []
    latest = now + MAX_AHEAD
    for record in records:
        if event := plain_event(record.key, record.value, latest, max_bytes):
            good.append((record, event))
            continue
        try:
            good.append((record, to_event(decode(record.key, record.value, now=now, max_bytes=max_bytes))))
        except Invalid as invalid:
            bad.append(DeadLetter(record, invalid.reason, invalid.detail))
    return good, bad
