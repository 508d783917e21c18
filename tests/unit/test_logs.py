"""What passes into the log, and how often."""

import logging

import pytest
from aiokafka.errors import GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError

from consumer.kafka.client import MOMENT_SECONDS, OnlyIfItLasts
from consumer.observability.logs import QUIET_SECONDS, SeldomRepeated


def line(name: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, ("node-1",), None)


def no_coordinator(error: Exception) -> logging.LogRecord:
    text = "Group Coordinator Request failed: %s"
    return logging.LogRecord("aiokafka.consumer.group_coordinator", logging.ERROR, __file__, 1, text, (error,), None)


def test_a_moment_without_a_coordinator_is_no_error_but_one_that_lasts_is() -> None:
    times = [0.0, 0.1, MOMENT_SECONDS / 2, MOMENT_SECONDS, MOMENT_SECONDS + 0.1, 10 * MOMENT_SECONDS]
    held = OnlyIfItLasts(iter(times).__next__)

    passed = [held.filter(no_coordinator(GroupCoordinatorNotAvailableError())) for _ in times]

    assert passed == [False, False, False, True, True, False]


def test_every_other_error_of_a_coordinator_passes_at_once() -> None:
    held = OnlyIfItLasts(lambda: 0.0)

    assert held.filter(no_coordinator(NotCoordinatorForGroupError()))


def test_a_library_that_repeats_itself_is_heard_once_in_a_while() -> None:
    now = 0.0
    seldom = SeldomRepeated(lambda: now)

    passed = [seldom.filter(line("aiokafka.conn", "no connection to %s")) for _ in range(3)]
    other = seldom.filter(line("aiokafka.conn", "no metadata of %s"))
    now = QUIET_SECONDS
    later = seldom.filter(line("aiokafka.conn", "no connection to %s"))

    assert passed == [True, False, False]
    assert other
    assert later


def test_lines_that_never_come_again_are_forgotten() -> None:
    now = 0.0
    seldom = SeldomRepeated(lambda: now)

    for number in range(100):
        now = number * QUIET_SECONDS
        seldom.filter(line("asyncio", f"future {number} was never retrieved"))

    assert len(seldom._passed) == 1


@pytest.mark.parametrize("name", ["consumer.worker", "consumer.outbox"])
def test_our_own_lines_always_pass(name: str) -> None:
    seldom = SeldomRepeated(lambda: 0.0)

    assert all(seldom.filter(line(name, "dead letter")) for _ in range(3))
