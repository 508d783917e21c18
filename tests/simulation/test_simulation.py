"""The simulation itself: schedules hold, take the same course each time, and find what is planted."""

import os
import subprocess
import sys

import pytest

from tests.simulation.__main__ import play
from tests.simulation.schedule import run

SEED = 7


def test_every_invariant_holds_in_some_schedules() -> None:
    tally = play((range(100), None))

    assert tally.broken == []
    assert tally.schedules == 100
    assert tally.struck.total() > 1000


def test_the_same_seed_takes_the_same_course_in_any_process() -> None:
    stories = {simulation("--replay", str(SEED), PYTHONHASHSEED=hash_seed).stdout for hash_seed in ("1", "2")}

    assert len(stories) == 1
    assert len(stories.pop().splitlines()) > 100


def test_different_seeds_take_different_courses() -> None:
    assert run(SEED).trace != run(SEED + 1).trace


def test_a_planted_bug_is_found_and_its_story_told() -> None:
    bug = "no version in the WHERE"

    seed, invariant, _ = play((range(25), bug)).broken[0]
    replayed = simulation("--replay", str(seed), "--bug", bug)

    assert invariant == "versions 1..V without gap or repeat"
    assert replayed.returncode == 1
    assert f"BROKEN {invariant}: c-" in replayed.stdout
    assert "v1 session 1: " in replayed.stdout
    assert simulation("--replay", str(seed)).returncode == 0


@pytest.mark.parametrize("option", [["--schedules", "x"], ["--bug", "no such"]])
def test_held_wrong_it_says_so(option: list[str]) -> None:
    found = simulation(*option)

    assert found.returncode == 2
    assert option[0] in found.stderr


def simulation(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *options],
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
