"""What an event costs on a conversation with a long past: on time, and late, where older sessions are read too."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random
from statistics import median

from pydantic import SecretStr

from consumer.lifecycle.model import Author, Event, ManualClose, Message, Status
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService
from consumer.settings import DatabaseSettings
from tests.benchmarks.arena import fetch
from tests.stack.database import execute

CONVERSATIONS = 5
EVENTS_OF_SESSION = 20
MEASURED = 200
WARM_UP = 20
SOURCE = "whatsapp:15550001111"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Depth:
    """Conversations with so many closed sessions: median seconds of a transaction with one event."""

    sessions: int
    on_time: float
    late: float

    @property
    def events(self) -> int:
        return self.sessions * EVENTS_OF_SESSION

    @property
    def cells(self) -> tuple[str, ...]:
        return f"{self.sessions:,}", f"{self.events:,}", f"{1000 * self.on_time:.2f}", f"{1000 * self.late:.2f}"


async def measure_depth(database: str, sessions: int) -> Depth:
    """Fills the empty `database` with a few such conversations first."""
    began = datetime.now(UTC) - (sessions + 1) * HOUR
    async with PostgresStore.open(DatabaseSettings(url=SecretStr(database), writers=1)) as store:
        service = ConversationService(store)
        for conversation_id in _ids():
            await service.apply(list(_past(conversation_id, began, sessions)))
        ((deepest, events),) = await fetch(database, "SELECT max(session), count(*) FROM conversation_event")
        if (deepest, events) != (sessions, sessions * EVENTS_OF_SESSION * CONVERSATIONS):
            raise RuntimeError(f"{sessions} sessions were wanted, and {deepest} with {events} events were made")
        await execute(database, "VACUUM ANALYZE")
        late = await _seconds(service, _late(began, sessions))
        on_time = await _seconds(service, _on_time())
    return Depth(sessions, on_time, late)


async def _seconds(service: ConversationService, events: Sequence[Event]) -> float:
    took = []
    for event in events:
        began = time.perf_counter()
        await service.apply([event])
        took.append(time.perf_counter() - began)
    return median(took[WARM_UP:])


def _ids() -> list[str]:
    return [f"deep-{number}" for number in range(CONVERSATIONS)]


def _past(conversation_id: str, began: datetime, sessions: int) -> Iterator[Event]:
    for session in range(sessions):
        for number in range(EVENTS_OF_SESSION - 1):
            author = Author.AGENT if number % 2 else Author.USER
            at = began + session * HOUR + number * MINUTE
            yield Message(conversation_id, SOURCE, f"past-{session}-{number}", at, author)
        at = began + session * HOUR + EVENTS_OF_SESSION * MINUTE
        yield ManualClose(conversation_id, "back-office", f"close-{session}", at, Status.AGENT_CLOSED, "agent-7", None)


def _late(began: datetime, sessions: int) -> list[Event]:
    """Messages that belong into any of the sessions."""
    random, ids = Random(0), _ids()
    return [
        Message(
            ids[number % CONVERSATIONS],
            SOURCE,
            f"late-{number}",
            began + random.randrange(sessions) * HOUR + random.uniform(0, EVENTS_OF_SESSION - 1) * MINUTE,
            Author.USER,
        )
        for number in range(WARM_UP + MEASURED)
    ]


def _on_time() -> list[Event]:
    ids, now = _ids(), datetime.now(UTC)
    return [
        Message(ids[number % CONVERSATIONS], SOURCE, f"now-{number}", now, Author.USER)
        for number in range(WARM_UP + MEASURED)
    ]
