"""What a competitor is data, and what it answers: JSON on the command line, one line of JSON on stdout."""

import asyncio
import sys
import time
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from consumer.commands.replica import collect_garbage_seldom
from consumer.lifecycle.model import Event
from schemas.events import Time
from tests.benchmarks.workload import Workload


class Run(BaseModel):
    """What was measured."""

    events: int
    seconds: float


class Course(BaseModel):
    """The workload and where it goes: `warm_up` events of the talk before the clock starts, then `events`.

    `opening`: how many opening events to load into `database` first; 0 where it holds them all already. `starting`
    dates the workload, so that all who make it make the same.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    database: str
    conversations: int = Field(ge=1)
    events: int = Field(ge=1)
    starting: Time
    opening: int = 0
    warm_up: int = Field(200, ge=1)
    seed: int = 0
    hot_share: float = 0.0

    @model_validator(mode="after")
    def _opens_all_or_none(self) -> "Course":
        if self.opening not in (0, self.conversations):
            raise ValueError("opening: 0, or as many as there are conversations")
        return self

    @property
    def workload(self) -> Workload:
        return Workload(self.conversations, self.warm_up + self.events, self.hot_share, self.seed)

    def opening_events(self) -> list[Event]:
        return list(islice(self.workload.all(self.starting), self.workload.opening))

    def talk(self) -> tuple[list[Event], list[Event]]:
        """The events to warm up with, and those that are measured."""
        events = islice(self.workload.all(self.starting), self.workload.opening, None)
        return list(islice(events, self.warm_up)), list(events)


class LogCourse(Course):
    """The talk comes from `topic`, for `group` from the offsets in `start` on; without any, from the log's start."""

    kafka: str
    topic: str
    group: str
    start: dict[int, int] = {}


class Stopwatch:
    """Counts events: the clock starts after the warm-up, and stops after as many as are measured."""

    def __init__(self, course: Course) -> None:
        self._counted = 0
        self._first = course.warm_up
        self._last = course.warm_up + course.events
        self._began = 0.0
        self._run: Run | None = None

    def stops(self) -> bool:
        """To be called after each event; true from the last one on."""
        self._counted += 1
        if self._counted == self._first:
            self._began = time.perf_counter()
        elif self._counted == self._last:
            self._run = Run(events=self._last - self._first, seconds=time.perf_counter() - self._began)
        return self._run is not None

    def run(self) -> Run:
        if self._run is None:
            raise RuntimeError(f"stopped after {self._counted} of {self._last} events")
        return self._run


C = TypeVar("C", bound=Course)


def take_part(course: type[C], race: Callable[[C], Coroutine[None, None, Run]]) -> None:
    """The whole of a competitor's process. The garbage collector is set as in our replicas."""
    collect_garbage_seldom()
    run = asyncio.run(race(course.model_validate_json(sys.argv[1])))
    sys.stdout.write(f"{run.model_dump_json()}\n")
