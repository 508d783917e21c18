"""A replica that fails at a given place: `FAILPOINT=committing:kill:20 python -m tests.chaos.failpoints`.

FAILPOINT is `place:action:count`: what happens when the place is reached as many times. It is off where the variable is
not set, and lives here: production code has no switch for it.
"""

import asyncio
import os
import signal
import sys
import time
from enum import StrEnum

from consumer import settings
from consumer.commands.output import print_error
from consumer.commands.replica import consume
from consumer.errors import ConsumerError
from consumer.observability import logs
from consumer.postgres.attempt import PostgresAttempt
from consumer.postgres.store import PostgresStore
from consumer.service.ports import EventsById
from tests.checker.hooked_store import HookedStore

VARIABLE = "FAILPOINT"


class Place(StrEnum):
    """Where an attempt that writes events may fail."""

    BEGAN = "began"
    """All is read, nothing is written; few events have no transaction yet."""
    COMMITTING = "committing"
    """All is written, nothing is committed. Every attempt is a transaction then, however few its events."""
    COMMITTED = "committed"
    """In the database, not yet known to the worker nor to Kafka."""


class Action(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"
    """As by SIGSTOP: somebody has to wake it."""
    STALL = "stall"
    """The event loop stands still for STALL_SECONDS, as in a computation without an await."""


STALL_SECONDS = 9.0
REACHED = "failpoint reached"
"""What the log says then."""


class Failpoint:
    """Off unless FAILPOINT is set. Acts once."""

    def __init__(self, spec: str | None) -> None:
        place, action, count = spec.split(":") if spec else (None, None, "0")
        self.place = Place(place) if place else None
        self._action = Action(action) if action else None
        self._left = int(count)

    def reach(self, place: Place) -> None:
        if place is not self.place:
            return
        self._left -= 1
        if self._left:
            return
        sys.stderr.write(f"{REACHED}\n")
        sys.stderr.flush()
        match self._action:
            case Action.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Action.FREEZE:
                os.kill(os.getpid(), signal.SIGSTOP)
            case Action.STALL:
                time.sleep(STALL_SECONDS)


FAILPOINT = Failpoint(os.environ.get(VARIABLE))


class FailingStore(HookedStore):
    """The store, with places to fail at before, in and after what it writes."""

    few = -1 if FAILPOINT.place is Place.COMMITTING else PostgresStore.few

    def began(self, attempt: PostgresAttempt, events: EventsById) -> None:
        FAILPOINT.reach(Place.BEGAN)

    def committing(self) -> None:
        FAILPOINT.reach(Place.COMMITTING)

    def committed(self) -> None:
        FAILPOINT.reach(Place.COMMITTED)


def main() -> None:
    found = settings.load()
    logs.configure(found.log)
    try:
        asyncio.run(consume(found, FailingStore))
    except ConsumerError as error:
        print_error(error)
        sys.exit(1)


if __name__ == "__main__":
    main()
