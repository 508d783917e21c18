"""The rules and their tests, as data; and every rule changed in every small way."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = PROMETHEUS / "rules.yaml"
TESTS = PROMETHEUS / "rules_test.yaml"
Rule = dict[str, Any]

NEVER, ALWAYS = "vector(0) > 1", "vector(1)"
NUMBER = re.compile(r'(?<![\w.:"\[])\d+(?:\.\d+)?(?![\w."\]])')
WINDOW = re.compile(r"\[(\d+)([mh])\]")
MATCHERS = re.compile(r"\{[^}]*\}")
OPERATORS = {
    r">": "<",
    r"<": ">",
    r"==": "!=",
    r" and ": " or ",
    r" or ": " and ",
    r" / ": " * ",
    r"> 0(?![.\d])": ">= 0",
}
"""Pattern -> what takes its place."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A rule that is changed in one place."""

    rule: Rule
    change: str


@cache
def rules() -> list[Rule]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def alerts() -> dict[str, Rule]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> dict[str, Rule]:
    return {rule["record"]: rule for rule in rules() if "record" in rule}


@cache
def case_groups() -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = yaml.safe_load(TESTS.read_text())["tests"]
    return groups


def cases(alert: str) -> list[dict[str, Any]]:
    """The cases of an alert, each at a time."""
    return [case for group in case_groups() for case in group["alert_rule_test"] if case["alertname"] == alert]


def depends_on(alert: Rule) -> list[Rule]:
    """The recording rules that an alert reads."""
    return [rule for name, rule in recorded().items() if name in alert["expr"]]


def mutants(alert: str) -> Iterator[Mutant]:
    """The alert changed in every small way, and each recording rule that it reads."""
    rule = alerts()[alert]
    for expression in (NEVER, ALWAYS):
        yield Mutant({**rule, "expr": expression}, f"expr: {expression}")
    minutes = int(rule.get("for", "0m").removesuffix("m"))
    for other in {max(0, minutes - 1), minutes + 1} - {minutes}:
        yield Mutant({**rule, "for": f"{other}m"}, f"for: {other}m")
    for changed in (rule, *depends_on(rule)):
        for expression, change in _expressions(changed["expr"]):
            yield Mutant({**changed, "expr": expression}, change)


def _expressions(expr: str) -> Iterator[tuple[str, str]]:
    for match in NUMBER.finditer(expr):
        number = float(match[0])
        for changed in (number * 1.25, number * 0.8) if number else (1.0,):
            yield _replaced(expr, match, f"{changed:g}")
    for match in WINDOW.finditer(expr):
        yield _replaced(expr, match, f"[{2 * int(match[1])}{match[2]}]")
    for match in MATCHERS.finditer(expr):
        yield _replaced(expr, match, "")
    for operator, other in OPERATORS.items():
        for match in re.finditer(operator, expr):
            yield _replaced(expr, match, other)


def _replaced(expr: str, match: re.Match[str], by: str) -> tuple[str, str]:
    line = expr[: match.start()].count("\n") + 1
    return expr[: match.start()] + by + expr[match.end() :], f"line {line}: {match[0].strip()} -> {by.strip()!r}"


def write_reduced(directory: Path, alert: str, mutant: Mutant) -> Path:
    """Writes the mutant, what it depends on, and the alert's own test groups; the file for promtool."""
    rule = alerts()[alert]
    name = next(key for key in ("alert", "record") if key in mutant.rule)
    kept = [mutant.rule if one.get(name) == mutant.rule[name] else one for one in (*depends_on(rule), rule)]
    (directory / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "reduced", "rules": kept}]}))
    groups = [
        {**group, "alert_rule_test": own}
        for group in case_groups()
        if (own := [case for case in group["alert_rule_test"] if case["alertname"] == alert])
    ]
    test = directory / "rules_test.yaml"
    test.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": groups}))
    return test
