"""The six races, staged: for each, two events cross each other, one through Kafka, one through the service."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from random import Random

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
from tests.checker.replay import History
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
class Duel:
    """`opening` is applied first; then `one` and `other` cross each other."""

    race: int
    opening: Event
    one: Event
    other: Event

    @property
    def conversation_id(self) -> str:
        return self.opening.conversation_id


def duel(race: int, number: int, policy: Policy) -> Duel:
    """A duel of now. Its events are dated so that it matters who comes first."""
    now, key = datetime.now(UTC), f"race-{race}-{number:03}"

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
    match race:
        case 1:
            return Duel(race, overdue, timer(1), message(now - 1.5 * TENTH))
        case 2:
            return Duel(race, overdue, timer(1), close(now))
        case 3:
            return Duel(race, overdue, timer(1), message(now - TENTH / 2, intent=Intent.CLOSE))
        case 4:
            return Duel(race, message(now - TENTH), message(now, Author.AGENT), message(now, Author.SUPPORT))
        case 5:
            return Duel(race, overdue, timer(1), timer(2))
        case _:
            return Duel(race, message(now - 10 * TENTH), close(now - TENTH), message(now))


async def fight(count: int, policy: Policy, seed: int, through_kafka: Send, directly: Send) -> list[Duel]:
    """`count` duels of each race; who takes which way takes turns. Returns them all."""
    random, fought = Random(seed), []
    room = asyncio.Semaphore(AT_ONCE)

    async def one_duel(race: int, number: int) -> None:
        async with room:
            fight = duel(race, number, policy)
            await directly(fight.opening)
            logged, direct = (fight.one, fight.other) if number % 2 else (fight.other, fight.one)
            await through_kafka(logged)
            await asyncio.sleep(random.random() * JITTER_SECONDS)
            await directly(direct)
            fought.append(fight)

    await asyncio.gather(*(one_duel(race, number) for number in range(count) for race in RACES))
    return fought


def one_came_first(duel: Duel, history: History) -> bool:
    """Whether `one` was decided before `other`, told by the history."""
    rows = {row.event_id: (row, recorded_at) for row, recorded_at in history}
    other, other_at = rows.get(duel.other.event_id, (None, None))
    match duel.race:
        case 1:
            return other is not None and other.outcome is Outcome.REINSTATED
        case 2 | 3:
            expired = [at for row, at in history if row.kind is Kind.TICK]
            return bool(expired) and other_at is not None and expired[0] < other_at
        case 5:
            return True
        case _:
            return other is not None and rows[duel.one.event_id][0].version < other.version


def held(duel: Duel, sessions: Sequence[Session], history: History) -> bool:
    """Whether ours came out right, whoever came first."""
    last = sessions[-1]
    match duel.race:
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


def naive_held(duel: Duel, row: NaiveRow, expiries: int) -> bool:
    """The same of the naive row, which has no sessions."""
    match duel.race:
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

    race: int
    one_first: int
    other_first: int
    ours_wrong: int
    naive_wrong: int


def score(
    duels: Iterable[Duel],
    ours: Mapping[str, tuple[Sequence[Session], History]],
    naive: Mapping[str, NaiveRow],
    expiries: Mapping[str, int],
) -> list[Score]:
    """By race. `ours` has sessions and history by conversation id, `naive` the naive rows."""
    scores = []
    for race in RACES:
        mine = [duel for duel in duels if duel.race == race]
        firsts = sum(one_came_first(duel, ours[duel.conversation_id][1]) for duel in mine)
        wrong = sum(not held(duel, *ours[duel.conversation_id]) for duel in mine)
        naive_wrong = sum(
            not naive_held(duel, naive[duel.conversation_id], expiries.get(duel.conversation_id, 0)) for duel in mine
        )
        scores.append(Score(race, firsts, len(mine) - firsts, wrong, naive_wrong))
    return scores
