"""What the service needs of a database."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, auto
from types import MappingProxyType
from typing import Protocol

from consumer.lifecycle.model import Change, Conversation, Event, Identity
from consumer.offsets import Progress

EventsById = Mapping[str, Sequence[Event]]
Conversations = Mapping[str, Conversation]
NO_CONVERSATIONS: Conversations = MappingProxyType({})
Lost = Mapping[str, str]
"""Conversation id -> why its write lost: `version` or `lock`."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the store knew when it was asked. A conversation it does not know is absent."""

    now: datetime
    conversations: Conversations
    known: Mapping[str, Collection[Identity]]


@dataclass(frozen=True, slots=True)
class Decided:
    """The changes to write, and the `now` they were decided at."""

    now: datetime
    changes: Sequence[Change]


class Locking(Enum):
    """What a transaction does about rows that somebody else holds."""

    OPTIMISTIC = auto()
    """Waits for them, but not for long: then it fails as a whole (`ContentionError`)."""
    SKIPPING = auto()
    """Counts them as lost."""
    PESSIMISTIC = auto()
    """Locks its rows before it reads them: what it has read, nobody else can win. A row that is yet to be made cannot
    be locked."""


class Attempt(Protocol):
    """It has read, and is to `save` what was decided: the offset moves with that."""

    snapshot: Snapshot

    async def save(self, decided: Decided) -> Lost:
        """Writes every change whose version still stands, and names the others. If there are any, the offset stays.

        Raises `StoreError` (`StaleOwnerError` too) and `UnavailableError`.
        """


class Store(Protocol):
    """What the service needs of a database."""

    def attempt(
        self, events: EventsById, progress: Progress | None, locking: Locking, cached: Conversations
    ) -> AbstractAsyncContextManager[Attempt]:
        """What is saved is committed by the end of the block. Raises `StoreError` and `UnavailableError`.

        It reads the conversations that are no longer at the version `cached`, *then* which events are known, and now;
        older sessions where an event may belong to one. `StaleOwnerError` comes before anything is written. What was
        read before the guard of `progress` might be of a time that a rewind has undone: it is used only if nothing can
        have been undone between the two.
        """


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process of the database that holds the row of a conversation.

    `since` is the start of its transaction. It is null, and `state` empty, where the database user may not see them.
    """

    pid: int
    application: str
    user: str
    since: datetime | None
    state: str

    def __str__(self) -> str:
        since = f"transaction open since {self.since:%Y-%m-%d %H:%M:%S}" if self.since else ""
        known = filter(None, (self.application or "unnamed", f"user {self.user}", self.state, since))
        return f"process {self.pid} ({', '.join(known)})"
