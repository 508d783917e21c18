"""Where a partition of the log goes on, as the database keeps it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the log as a consumer group sees it."""

    group: str
    topic: str
    number: int


@dataclass(frozen=True, slots=True)
class Progress:
    """`next_offset` moves from `start` to `end`, in the transaction that writes the last of the batch.

    Each transaction finds the `mark` that the one before it left, and leaves `next_mark`: after a rewind, what earlier
    ones have written may be gone although the offset is the same.
    """

    partition: Partition
    start: int
    end: int
    mark: int = 0
    next_mark: int = 0


@dataclass(frozen=True, slots=True)
class StoredOffset:
    """Where a partition goes on, the cluster whose log the offset counts in, and the last transaction's mark."""

    cluster_id: str
    next_offset: int
    mark: int = 0
