"""Records of the log, and dead letters."""

from dataclasses import dataclass
from typing import NamedTuple

from schemas import Reason


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
