"""The rules do what they say: Prometheus' own checks, and checks of those checks."""

from pathlib import Path

import pytest

from tests.observability.promtool import promtool
from tests.observability.rules import PROMETHEUS, RULES, TESTS, Mutant, alerts, cases, mutants, write_reduced


@pytest.mark.needs("promtool")
def test_prometheus_takes_the_configuration() -> None:
    valid, text = promtool("check", "config", PROMETHEUS / "prometheus.yml")

    assert valid, text


@pytest.mark.needs("promtool")
def test_the_rules_pass_their_tests() -> None:
    valid, text = promtool("test", "rules", TESTS)

    assert valid, text


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_has_a_firing_and_a_silent_case(alert: str) -> None:
    fired = [bool(case["exp_alerts"]) for case in cases(alert)]

    assert any(fired)
    assert not all(fired)


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_says_what_happens_and_how_urgent_it_is(alert: str) -> None:
    rule = alerts()[alert]

    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("alert", alerts())
def test_the_cases_of_an_alert_hold_for_it_alone(alert: str, tmp_path: Path) -> None:
    unchanged = Mutant(alerts()[alert], "nothing")

    passed, text = promtool("test", "rules", write_reduced(tmp_path, alert, unchanged))

    assert passed, text


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("alert", alerts())
def test_every_small_change_of_an_alert_is_noticed(alert: str, tmp_path: Path) -> None:
    """A case that cannot fail checks nothing: numbers, durations, windows, matchers and operators are changed."""
    unnoticed = [
        mutant.change
        for mutant in mutants(alert)
        if promtool("test", "rules", write_reduced(tmp_path, alert, mutant))[0]
    ]

    assert unnoticed == []


def test_the_recorded_rules_are_the_headline_queries_of_the_readme() -> None:
    readme = " ".join((PROMETHEUS.parents[1] / "README.md").read_text().split())
    headline = [rule for rule in RULES.read_text().split("- record: ")[1:] if rule.startswith("operation:")]

    assert len(headline) == 2
    for rule in headline:
        assert " ".join(rule.partition("expr: |")[2].partition("# ")[0].split()) in readme
