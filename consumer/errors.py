"""Every error of this package. The tree is the policy: what a class sits under says what happens next.

ConsumerError
├── ConfigurationError       the process stops at start; the message names the variable or the command that mends it
├── PartitionStoppedError    one partition stops, the replica is not ready; the message says what to run
├── InvalidEventError        a library caller passed an event the contract forbids
├── ConcurrencyError         a library caller's retry budget is used up; nothing of the named conversations was written
├── StalledError             Kafka's client is stuck: the process ends itself, a new one is not
├── DrainingError            the partition is being given up: stop between transactions, the next owner goes on
├── UnavailableError         an outage of database or brokers: pause, try again for as long as it takes, skip nothing
│   ├── ConnectionLostError  … and the connections of the pool are of no use any more
│   └── TooSlowError         … because the database did not answer in time: try again with less at once
└── StoreError
    ├── ContentionError      another writer won: back off, decide again on fresh state
    ├── RefusedError         PostgreSQL will never take these values: isolate the event, dead-letter it
    └── StaleOwnerError      the stored offset is not ours: re-read it and seek
"""

from collections.abc import Iterable


class ConsumerError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigurationError(ConsumerError):
    """A setting, a topic or the schema is not as this build needs it."""


class PartitionStoppedError(ConsumerError):
    """The stored offset does not fit the log; going on would skip or repeat records silently."""


class InvalidEventError(ConsumerError):
    """An event handed to the service breaks the event contract."""


class ConcurrencyError(ConsumerError):
    """Other writers kept winning until the retry budget was used up.

    `conversation_ids` names the conversations that were not written; every other one of the call was.
    """

    def __init__(self, conversation_ids: Iterable[str], attempts: int) -> None:
        self.conversation_ids = frozenset(conversation_ids)
        super().__init__(f"{len(self.conversation_ids)} conversation(s) still contended after {attempts} attempts")


class DrainingError(ConsumerError):
    """The partition was revoked or the process is stopping."""


class StalledError(ConsumerError):
    """Records are there, but the client brings none."""


class UnavailableError(ConsumerError):
    """The database or the brokers cannot be reached, are shutting down, read-only, or out of resources."""


class ConnectionLostError(UnavailableError):
    """The database went away, or is no longer one that can be written to."""


class TooSlowError(UnavailableError):
    """A statement or an answer took longer than its limit."""


class StoreError(ConsumerError):
    """Something the store reported, classified once, at the edge."""


class ContentionError(StoreError):
    """A version had moved on, a row was locked, or PostgreSQL broke a deadlock.

    `reason` is the `reason` label of `conversation_retries_total`.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"lost a race: {reason}")


class RefusedError(StoreError):
    """A value that no retry will make acceptable."""


class StaleOwnerError(StoreError):
    """The guard found another offset or mark: a newer owner has moved it, or the database was rewound."""
