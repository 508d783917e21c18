"""The six races, run on purpose: two events cross each other, one through Kafka, one through the service."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

from consumer.history.replay import History
from consumer.lifecycle.model import (
    Author,
    Event,
    Intent,
    Kind,
    ManualClose,
    Message,
    Outcome,
    Policy,
    Session,
    Status,
    Tick,
)
from tests.demo.naive import NaiveRow

TENTH = timedelta(seconds=0.1)
AT_ONCE = 8
JITTER_SECONDS = 0.03
RACES = {
    1: ("timer", "user's message"),
    2: ("timer", "agent's close"),
    3: ("timer", "user's goodbye"),
    4: ("agent's message", "support's message"),
    5: ("timer", "timer"),
    6: ("agent's close", "user's newer message"),
}
Send = Callable[[Event], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Race:
    """`opening` is applied first; then `one` and `other` cross each other."""

    kind: int
    opening: Event
    one: Event
    other: Event

    @property
    def conversation_id(self) -> str:
        return self.opening.conversation_id


def new_race(kind: int, number: int, policy: Policy) -> Race:
    """A race of now. Its events are dated so that it matters who comes first."""
    now, key = datetime.now(UTC), f"race-{kind}-{number:03}"

    def message(at: datetime, author: Author = Author.USER, intent: Intent | None = None) -> Message:
        name = f"{key}-{author}-{at:%H%M%S%f}"
        return Message(conversation_id=key, source="race", event_id=name, at=at, author=author, intent=intent)

    def timer(which: int) -> Tick:
        return Tick(conversation_id=key, source="race", event_id=f"{key}-tick-{which}", at=now)

    def close(at: datetime) -> ManualClose:
        closing = Status.AGENT_CLOSED
        return ManualClose(
            conversation_id=key, source="race", event_id=f"{key}-x", at=at, status=closing, actor="agent-7"
        )

    overdue = message(now - policy.pending_ttl - TENTH)
    match kind:
        case 1:
            return Race(kind, overdue, timer(1), message(now - 1.5 * TENTH))
        case 2:
            return Race(kind, overdue, timer(1), close(now))
        case 3:
            return Race(kind, overdue, timer(1), message(now - TENTH / 2, intent=Intent.CLOSE))
        case 4:
            return Race(kind, message(now - TENTH), message(now, Author.AGENT), message(now, Author.SUPPORT))
        case 5:
            return Race(kind, overdue, timer(1), timer(2))
        case _:
            return Race(kind, message(now - 10 * TENTH), close(now - TENTH), message(now))


async def run_races(count: int, policy: Policy, seed: int, through_kafka: Send, directly: Send) -> list[Race]:
    """`count` races of each kind; who takes which way takes turns. Returns them all."""
    random, run = Random(seed), list[Race]()
    room = asyncio.Semaphore(AT_ONCE)

    async def one_race(kind: int, number: int) -> None:
        async with room:
            race = new_race(kind, number, policy)
            await directly(race.opening)
            logged, direct = (race.one, race.other) if number % 2 else (race.other, race.one)
            await through_kafka(logged)
            await asyncio.sleep(random.random() * JITTER_SECONDS)
            await directly(direct)
            run.append(race)

    await asyncio.gather(*(one_race(kind, number) for number in range(count) for kind in RACES))
    return run


def one_came_first(race: Race, history: History) -> bool:
    """Whether `one` was decided before `other`, told by the history."""
    rows = {row.event_id: (row, recorded_at) for row, recorded_at in history}
    other, other_at = rows.get(race.other.event_id, (None, None))
    match race.kind:
        case 1:
            return other is not None and other.outcome is Outcome.REINSTATED
        case 2 | 3:
            expired = [at for row, at in history if row.kind is Kind.TICK]
            return bool(expired) and other_at is not None and expired[0] < other_at
        case 5:
            return True
        case _:
            return other is not None and rows[race.one.event_id][0].version < other.version


def held(race: Race, sessions: Sequence[Session], history: History) -> bool:
    """Whether ours came out right, whoever came first."""
    last = sessions[-1]
    match race.kind:
        case 1:
            return last.number == 1 and last.status is Status.PENDING and last.user_messages == 2
        case 2:
            return last.status is Status.AGENT_CLOSED and last.number == 1
        case 3:
            return last.status is Status.USER_CLOSED and last.number == 1
        case 4:
            accepted = [row for row, _ in history if row.to_status is Status.PROGRESS and row.is_transition]
            return last.agent_messages == 2 and len(accepted) == 1
        case 5:
            return [row.to_status for row, _ in history if row.kind is Kind.TICK] == [Status.EXPIRED]
        case _:
            return [session.status for session in sessions] == [Status.AGENT_CLOSED, Status.PENDING]


def naive_held(race: Race, row: NaiveRow, expiries: int) -> bool:
    """The same of the naive row, which has no sessions."""
    match race.kind:
        case 1:
            return row.status is Status.PENDING and row.user_messages == 2
        case 2:
            return row.status is Status.AGENT_CLOSED
        case 3:
            return row.status is Status.USER_CLOSED
        case 4:
            return row.agent_messages == 2
        case 5:
            return row.status is Status.EXPIRED and expiries == 1
        case _:
            return row.status is Status.PENDING and row.user_messages == 2


@dataclass(frozen=True, slots=True)
class Score:
    """How often a race was run in each order, and how often each writer got it wrong."""

    kind: int
    one_first: int
    other_first: int
    ours_wrong: int
    naive_wrong: int


def score(
    races: Sequence[Race],
    ours: Mapping[str, tuple[Sequence[Session], History]],
    naive: Mapping[str, NaiveRow],
    expiries: Mapping[str, int],
) -> list[Score]:
    """By race. `ours` has sessions and history by conversation id, `naive` the naive rows."""
    scores = []
    for kind in RACES:
        mine = [race for race in races if race.kind == kind]
        firsts = sum(one_came_first(race, ours[race.conversation_id][1]) for race in mine)
        wrong = sum(not held(race, *ours[race.conversation_id]) for race in mine)
        naive_wrong = sum(
            not naive_held(race, naive[race.conversation_id], expiries.get(race.conversation_id, 0)) for race in mine
        )
        scores.append(Score(kind, firsts, len(mine) - firsts, wrong, naive_wrong))
    return scores
