"""What an operator sees of dead letters, whatever a producer or somebody else wrote."""

from datetime import UTC, datetime

import pytest
from aiokafka import ConsumerRecord

from consumer.commands.dead_letters import _facts
from consumer.kafka.dead_letters import StoredDeadLetter, _parse
from consumer.records import Record


def stored(headers: list[tuple[str, bytes | None]]) -> "ConsumerRecord[bytes, bytes]":
    """A record of the dead-letter topic."""
    return ConsumerRecord("dead", 0, 42, 0, 0, b"c-1", b"{}", None, 3, 2, tuple(headers))


def test_a_null_header_of_somebody_elses_record_hides_no_dead_letter() -> None:
    assert _parse(stored([("error", None)])) is None


@pytest.mark.parametrize(
    ("milliseconds", "at"),
    [
        (1_767_225_600_000, datetime(2026, 1, 1, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        (1_767_225_600_000_000, None),
        (-(2**63), None),
    ],
)
def test_a_record_of_a_time_that_is_no_date_is_shown_without_it(milliseconds: int, at: datetime | None) -> None:
    letter = StoredDeadLetter(
        (0, 42),
        datetime.now(UTC),
        Record("events", 0, 7, milliseconds, b"c-1", b"{}"),
        "group",
        "invalid_json",
        "why",
        2,
    )

    assert _facts(letter)["recorded_at"] == at
