"""SIGTERM and SIGINT: the first one stops, the second one ends."""

import asyncio
import os
import signal
from collections.abc import Callable


def stop_on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT calls `stop`, the second ends the process at once."""

    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 1)
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
