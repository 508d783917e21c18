"""The lifecycle, explored: each status and event, in every order of times that `DEPTH` events lead to."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pytest

from consumer.lifecycle import draft, rules
from consumer.lifecycle.draft import Draft
from consumer.lifecycle.model import Outcome, Policy, Status
from consumer.lifecycle.rules import deadlines
from tests.model.documents import DOCS
from tests.model.explorer import DEPTH, Step, Survey, explored, markdown, survey
from tests.model.oracle import decide

POLICY = Policy()
FILES = {rules.__file__, draft.__file__}
NOT_OF_APPLY = {Outcome.DUPLICATE, Outcome.DEAD_LETTER}


@pytest.fixture(scope="module")
def found() -> Survey:
    return survey(agreed(explored(POLICY)))


def agreed(steps: Iterable[Step]) -> Iterator[Step]:
    """Holds each step against the rules written a second time."""
    for step in steps:
        assert decide(step.before, step.made, POLICY, step.now) == step.decision
        for session in step.decision.conversation.sessions:
            assert (session.closed_at is None) == session.status.is_open
            assert (session.idle_at, session.expires_at) == deadlines(session.status, session.last_activity_at, POLICY)
        yield step


def test_every_status_can_be_reached_and_left(found: Survey) -> None:
    assert found.reached == set(Status)
    assert found.left == set(Status)


def test_every_event_has_an_answer_in_every_status(found: Survey) -> None:
    assert found.missing_cases == set()
    assert found.outcomes == set(Outcome) - NOT_OF_APPLY


def test_the_docs_have_the_lifecycle_as_it_is(found: Survey) -> None:
    assert markdown(found) in (DOCS / "lifecycle.md").read_text()


def test_every_line_of_the_rules_is_reached() -> None:
    """The last arm of a `match` that has them all is the exception."""
    lines = lines_of(rules, vars(rules)) | lines_of(draft, vars(Draft))
    seen: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in FILES:
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for step in explored(POLICY, DEPTH - 1):
            rules.fold(step.before, [step.made, step.made], (), POLICY, step.now)
            for session in step.before.sessions:
                deadlines(session.status, session.last_activity_at, POLICY)
                rules.reaches_back(step.before, [step.made], step.now)
    finally:
        sys.settrace(before)

    missed = {Path(file).read_text().splitlines()[line - 1].strip() for file, line in lines - seen}
    assert {text for text in missed if "assert_never" not in text and text != "case _:"} == set()


def lines_of(module: ModuleType, members: Mapping[str, object]) -> set[tuple[str, int]]:
    """The lines that do something, of the functions and properties among its members."""
    functions = [member.fget if isinstance(member, property) else member for member in members.values()]
    codes = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    own = [code for code in codes if code.co_filename == module.__file__]
    return {
        (code.co_filename, line)
        for code in own
        for _, _, line in code.co_lines()
        if line and line > code.co_firstlineno
    }
