"""`make audit` never takes silence for a pass."""

from typing import Any

from tests.deploy.audit import CLEAN, NOT_AUDITED, VULNERABLE, verdict

KNOWN: dict[str, Any] = {"id": "PYSEC-1", "fix_versions": ["1.1"]}


def requirement(name: str, *vulnerabilities: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "version": "1.0", "vulns": [*vulnerabilities]}


def skipped(name: str) -> dict[str, Any]:
    return {"name": name, "skip_reason": "not found"}


def test_what_was_looked_up_and_is_clean_passes() -> None:
    code, text = verdict("lock", {"dependencies": [requirement("a"), requirement("b")]})

    assert (code, text) == (CLEAN, "lock: 2 requirements looked up, no known vulnerability")


def test_a_known_vulnerability_is_named_with_its_remedy() -> None:
    code, text = verdict("lock", {"dependencies": [requirement("a", KNOWN), skipped("b")]})

    assert (code, text) == (VULNERABLE, "a 1.0: PYSEC-1, mended in 1.1")


def test_a_requirement_that_could_not_be_looked_up_is_no_pass() -> None:
    code, text = verdict("lock", {"dependencies": [requirement("a"), skipped("b")]})

    assert (code, text) == (NOT_AUDITED, "lock was NOT audited: 1 of 2 not looked up; not found")


def test_an_empty_report_is_no_pass() -> None:
    assert verdict("lock", {"dependencies": []})[0] == NOT_AUDITED
