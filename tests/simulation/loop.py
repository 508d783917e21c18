"""An event loop on virtual time: hours pass in milliseconds, and the same schedule takes the same course."""

import asyncio
import selectors
from contextvars import ContextVar
from typing import Any

Tasks = dict[asyncio.Task[Any], None]
OWNED: ContextVar[Tasks | None] = ContextVar("OWNED", default=None)
"""The tasks of the process that runs, in the order in which it has started them."""


class Deadlock(Exception):  # noqa: N818 - what it is
    """Everybody waits, and no timer will wake anybody."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anybody can go on; then it jumps to the next timer."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)
        self.set_task_factory(_owned)

    def time(self) -> float:
        return self._clock.now


def _owned(loop: asyncio.AbstractEventLoop, work: Any, **arguments: Any) -> Any:
    task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **arguments)
    if (owned := OWNED.get()) is not None:
        owned[task] = None
        task.add_done_callback(owned.pop)
    return task


class _Clock(selectors.SelectSelector):
    """Instead of waiting for a socket, moves the time on. Nothing of a simulation comes from outside."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock
        self.now += max(0.0, timeout)
        return []
