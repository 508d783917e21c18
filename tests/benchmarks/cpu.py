"""What takes a replica's CPU: for every few milliseconds of it, which library runs.

`python -m tests.benchmarks.cpu FILE` is a replica that writes how often each was met into a file when it ends.
"""

import json
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import FrameType

from consumer.commands.run import run
from tests.benchmarks.report import table

SAMPLE_SECONDS = 0.001
"""Of CPU. The kernel's own clock makes it four times as much, or so."""
LIBRARIES = {
    "/aiokafka/": "aiokafka",
    "/asyncpg/": "asyncpg",
    "/sqlalchemy/": "SQLAlchemy's pool",
    "/prometheus_client/": "prometheus-client",
    "/structlog/": "structlog",
    "/consumer/commands/": "",
    "/consumer/": "ours",
    "/schemas/": "ours",
}
"""Part of a path -> what its functions are counted for. The first that fits; nothing for what only starts the loop."""
LOOP = {"select": "event loop: waits", "_read_ready__data_received": "event loop: receives"}
SENDS = ("write", "writelines")


@contextmanager
def sampled() -> Iterator[Counter[str]]:
    """Counts what this process runs meanwhile. To be entered in the main thread."""
    found: Counter[str] = Counter()
    previous = signal.signal(signal.SIGPROF, lambda _, frame: found.update((what_runs(frame),)))
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_SECONDS, SAMPLE_SECONDS)
    try:
        yield found
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def what_runs(frame: FrameType | None) -> str:
    """The innermost library on the stack, and whether it sends; or a part of the event loop."""
    name = frame.f_code.co_name if frame else ""
    while frame:
        if library := _library(frame.f_code.co_filename):
            return f"{library}: sends" if name in SENDS else library
        frame = frame.f_back
    return LOOP.get(name, "event loop: the rest")


@lru_cache
def _library(file: str) -> str:
    return next((library for part, library in LIBRARIES.items() if part in file), "")


def cpu_table(samples: Mapping[str, int], microseconds: float) -> list[list[str]]:
    """Of so many µs of CPU an event, by what they go to."""
    total = sum(samples.values())
    shares = sorted(((count / total, what) for what, count in samples.items()), reverse=True)
    rows = ((what, f"{share:.0%}", f"{share * microseconds:.0f}") for share, what in shares)
    return table((f"{total:,} samples", "of the CPU", "µs an event"), *rows)


def load(file: Path) -> dict[str, int]:
    return dict(json.loads(file.read_text()))


def main(file: str) -> None:
    with sampled() as found:
        run()
    Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
