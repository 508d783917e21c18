"""An event loop on virtual time: hours pass in milliseconds, and the same schedule takes the same course."""

import asyncio
import selectors


class Deadlock(Exception):  # noqa: N818 - what it is
    """Everybody waits, and no timer will wake anybody."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anybody can go on; then it jumps to the next timer."""

    def __init__(self) -> None:
        self._clock = _Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


class _Clock(selectors.SelectSelector):
    """Instead of waiting for a socket, moves the time on. Nothing of a simulation comes from outside."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock
        self.now += max(0.0, timeout)
        return []
