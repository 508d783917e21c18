"""The gate of the mutation tests."""

from collections import Counter

import pytest

from tests.mutants import Score


@pytest.mark.parametrize(("killed", "reaches"), [(89, False), (90, True), (91, True)])
def test_a_module_below_its_floor_does_not_pass(killed: int, reaches: bool) -> None:
    score = Score.of(Counter({"killed": killed - 4, "timeout": 4, "survived": 99 - killed, "no tests": 1}))

    assert score.reaches(90) is reaches


def test_what_was_not_tried_in_time_is_counted_apart() -> None:
    score = Score.of(Counter({"killed": 9, "survived": 1, "not checked": 90}))

    assert score.reaches(90)
    assert str(score) == "9 of 10 mutants killed (90.0%), 90 not tried in time"


def test_nothing_tried_proves_nothing() -> None:
    assert not Score.of(Counter({"not checked": 90})).reaches(0)
