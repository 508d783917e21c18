"""What passes into the log, and how often."""

import logging

import pytest

from consumer.observability.logs import QUIET_SECONDS, SeldomRepeated


def line(name: str, text: str) -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, text, ("node-1",), None)


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


@pytest.mark.parametrize("name", ["consumer.worker", "consumer.outbox"])
def test_our_own_lines_always_pass(name: str) -> None:
    seldom = SeldomRepeated(lambda: 0.0)

    assert all(seldom.filter(line(name, "dead letter")) for _ in range(3))
