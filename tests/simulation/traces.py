"""What a schedule leaves behind beside its evidence: the log lines in its trace, the faults of its producers."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import structlog

from consumer.lifecycle.model import Tick
from tests.checker.ledger import Evidence, key_of
from tests.checker.verdicts import event_in
from tests.simulation.world import Fault


def count_traffic(struck: Counter[Fault], evidence: Evidence) -> None:
    """The faults that the producers have put into the log."""
    seen = set()
    for record in evidence.log:
        event = event_in(record)
        if event is None:
            struck[Fault.POISON] += 1
        if event is None or isinstance(event, Tick):
            continue
        seconds = event.at.timestamp() - record.timestamp / 1000
        struck[Fault.LATE] += seconds < -0.002
        struck[Fault.AHEAD] += seconds > 0.002
        struck[Fault.DUPLICATE] += key_of(event) in seen
        seen.add(key_of(event))


@contextmanager
def logged(tell: Callable[[str, str], None]) -> Iterator[None]:
    """What the code under test logs becomes a part of the trace."""

    def processor(_: Any, __: str, entry: Any) -> Any:
        tell("log line", " ".join(f"{name}={value}" for name, value in entry.items()))
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[processor])
    try:
        yield
    finally:
        structlog.configure(processors=before)
