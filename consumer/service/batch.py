"""Events on their way into the store."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from consumer.lifecycle.model import Change, Event, Outcome
from consumer.observability.metrics import DIRECT
from consumer.offsets import Progress
from consumer.service.cache import Memory


class Batch:
    """Events on their way into the store, in the order of the log. May be resumed: what was written is not pending."""

    def __init__(
        self,
        events: Sequence[Event],
        progress: Progress | None = None,
        topic: str = DIRECT,
        memory: Memory | None = None,
    ) -> None:
        self.events = tuple(events)
        self.progress = progress
        self.memory = memory or Memory(0)
        self.buried = False
        self.topic = topic
        self.outcomes: list[Outcome | None] = [None] * len(self.events)
        self.refused: list[int] = []
        self.losses: Counter[str] = Counter()
        self.losing: Sequence[tuple[Change, str]] = ()
        self.started = time.monotonic()

    def pending(self, part: Sequence[int]) -> dict[str, list[int]]:
        """Conversation id -> positions among `part` of the events not yet written."""
        groups: dict[str, list[int]] = {}
        for position in part:
            if self.outcomes[position] is None:
                groups.setdefault(self.events[position].conversation_id, []).append(position)
        return groups

    def step(self, next_mark: int, *, hold: bool) -> Progress | None:
        """What the next transaction does to the offset; one that holds it is guarded all the same."""
        if self.progress is None:
            return None
        end = self.progress.start if hold else self.progress.end
        return replace(self.progress, end=end, next_mark=next_mark)

    def leave(self, progress: Progress | None) -> None:
        """That transaction was committed: the next one must find its mark."""
        if self.progress is not None and progress is not None:
            self.progress = replace(self.progress, mark=progress.next_mark)

    def refuse(self, position: int) -> None:
        """The store will never take the event at this position."""
        self.outcomes[position] = Outcome.DEAD_LETTER
        self.refused.append(position)
