"""What a PromQL expression reads, and what there is to read."""

import re
from functools import cache
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from consumer.observability.lag import Lag
from consumer.observability.metrics import Metrics, Part
from tests.observability.rules import recorded

EVERYTHING = Part.REPLICA | Part.TICKER | Part.OUTBOX
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
OF_THE_TARGET = {"job", "instance"}
OF_PROMETHEUS = {"up": OF_THE_TARGET, "ALERTS": {"alertname", "alertstate"} | OF_THE_TARGET}
STRING = re.compile(r'"[^"]*"')
GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?(?!\w*\s*\()")
KEYWORDS = {"and", "or", "unless", "bool", "offset"}


@cache
def catalogue() -> dict[str, set[str]]:
    """Every series that the processes export, that Prometheus adds or that a rule records: its name and its labels."""
    metrics = Metrics(["events"], parts=EVERYTHING)
    metrics.watch_lag(lambda: [Lag("events", 0, 0, 0.0)])
    declared = {field._name: field for field in vars(metrics).values() if isinstance(field, MetricWrapperBase)}
    found: dict[str, set[str]] = dict(OF_PROMETHEUS)
    for family in metrics.registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        labels |= set(declared[family.name]._labelnames) if family.name in declared else set()
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] = (labels - {"le"}) | ({"le"} if suffix == "_bucket" else set()) | OF_THE_TARGET
    return found | {name: _grouped_by(rule) for name, rule in recorded().items()}


def read_by(expr: str) -> list[tuple[str, set[str]]]:
    """The series that an expression names, each with the labels by which it chooses among them."""
    bare = GROUPING.sub("", STRING.sub('""', re.sub(r"\[[^\]]*\]", "", expr)))
    return [
        (name, set(re.findall(r"(\w+)\s*[=!]", matchers)))
        for name, matchers in SELECTOR.findall(bare)
        if name not in KEYWORDS
    ]


def grouping(expr: str) -> set[str]:
    """The labels by which an expression aggregates or matches."""
    return {label.strip() for labels in GROUPING.findall(expr) for label in labels.split(",") if label.strip()}


def misread(expr: str) -> set[str]:
    """What an expression names and nobody exports: series, or labels of them."""
    known, read = catalogue(), read_by(expr)
    wrong = {name for name, _ in read if name not in known}
    wrong |= {f"{name}{{{label}}}" for name, labels in read for label in labels - known.get(name, labels)}
    return wrong | (grouping(expr) - {label for name, _ in read for label in known.get(name, set())})


def _grouped_by(rule: dict[str, Any]) -> set[str]:
    return grouping(rule["expr"])
