"""A batch: events of the log on their way into the store."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace

from consumer.lifecycle.model import Change, Event, Outcome
from consumer.observability.metrics import DIRECT
from consumer.offsets import Progress
from consumer.service.cache import ConversationCache

DeadLetterRefused = Callable[[Sequence[int]], Awaitable[None]]
"""Dead-letters the refused events at these positions of a batch, and returns when that is acknowledged."""


class Batch:
    """Events in the order of the log. It can be resumed after any error: what was written is no longer pending.

    The offset moves in the transaction that writes the last pending event, once the dead letters of all refused events
    are acknowledged. Without `dead_letter` a refused event holds it.
    """

    def __init__(
        self,
        events: Sequence[Event],
        progress: Progress | None = None,
        *,
        topic: str = DIRECT,
        cache: ConversationCache | None = None,
        dead_letter: DeadLetterRefused | None = None,
    ) -> None:
        self.events = tuple(events)
        self.progress = progress
        self.topic = topic
        self.cache = cache or ConversationCache(0)
        self.outcomes: list[Outcome | None] = [None] * len(self.events)
        self.refused: list[int] = []
        self.conflicts: Counter[str] = Counter()
        self.losing: Sequence[tuple[Change, str]] = ()
        self.started = time.monotonic()
        self._dead_letter = dead_letter
        self._dead_lettered = 0
        self._locked_since: dict[str, float] = {}

    @property
    def everything(self) -> Sequence[int]:
        """The positions of all events."""
        return range(len(self.events))

    def pending(self, part: Iterable[int]) -> dict[str, list[int]]:
        """Conversation id -> positions among `part` of the events not yet written."""
        groups: dict[str, list[int]] = {}
        for position in part:
            if self.outcomes[position] is None:
                groups.setdefault(self.events[position].conversation_id, []).append(position)
        return groups

    def step(self, writing: int, next_mark: int) -> Progress | None:
        """What a transaction that writes `writing` pending events does to the offset, under the guard in any case."""
        if self.progress is None:
            return None
        last = writing == self.outcomes.count(None) and not self.awaits_dead_letters
        end = self.progress.end if last else self.progress.start
        return replace(self.progress, end=end, next_mark=next_mark)

    def committed(self, step: Progress | None) -> None:
        """The next transaction must find the fencing token that this one left."""
        if self.progress is not None and step is not None:
            self.progress = replace(self.progress, mark=step.next_mark)

    def lose(self, losing: Sequence[tuple[Change, str]]) -> None:
        """Notes the changes that lost their race, each with the reason."""
        now = asyncio.get_running_loop().time()
        locked = [change.before.id for change, reason in losing if reason == "lock"]
        self._locked_since = {key: self._locked_since.get(key, now) for key in locked}
        self.conflicts.update(change.before.id for change, _ in losing)
        self.losing = losing

    def locked_longer_than(self, seconds: float) -> dict[str, float]:
        """Conversation id -> for how long somebody else has held its row, in seconds."""
        now = asyncio.get_running_loop().time()
        return {key: now - since for key, since in self._locked_since.items() if now - since > seconds}

    def refuse(self, position: int) -> None:
        """The store will never take the event at this position."""
        self.outcomes[position] = Outcome.DEAD_LETTER
        self.refused.append(position)

    @property
    def awaits_dead_letters(self) -> bool:
        return self._dead_lettered < len(self.refused)

    async def dead_letter_refused(self) -> None:
        """Dead-letters the refused events, if there is a way to. Called again after an error, it may repeat some."""
        if self._dead_letter is None:
            return
        refused = len(self.refused)
        await self._dead_letter(self.refused[self._dead_lettered :])
        self._dead_lettered = refused
