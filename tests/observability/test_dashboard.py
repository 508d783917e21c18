"""Rules, dashboard and documents read only what is exported."""

import json
import re
from itertools import product
from pathlib import Path

import pytest
import yaml

from consumer.postgres.tables import metadata
from tests.observability.dashboard import PANELS, Panel
from tests.observability.grafana import DASHBOARD, as_json
from tests.observability.promql import catalogue, misread
from tests.observability.rules import ROOT, rules

GRAFANA = ROOT / "deploy" / "grafana"
DOCUMENTS = [path for pattern in ("*.md", "docs/**/*.md") for path in sorted(ROOT.glob(pattern))]
VIEWS = re.compile(r"CREATE (?:OR REPLACE )?VIEW (\w+)")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_reads_what_is_exported(rule: dict[str, str]) -> None:
    assert misread(rule["expr"]) == set()


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_a_panel_reads_what_is_exported(panel: Panel) -> None:
    assert [wrong for expr in panel.queries.values() if (wrong := misread(expr))] == []


@pytest.mark.parametrize(
    ("expr", "wrong"),
    [
        ("rate(conversation_event_total[5m])", {"conversation_event_total"}),
        ('conversation_ready{pod="a"}', {"conversation_ready{pod}"}),
        ("sum by (topic) (conversation_ready)", {"topic"}),
        ("conversation_event_age_seconds", {"conversation_event_age_seconds"}),
    ],
)
def test_what_nobody_exports_is_noticed(expr: str, wrong: set[str]) -> None:
    assert misread(expr) == wrong


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_names_metrics_that_are_exported_with_their_labels(path: Path) -> None:
    text = path.read_text()
    known = {name: set[str]() for name in families() | not_metrics()} | catalogue()
    named = re.findall(r"(?<![\w./:])(conversation_\w+)(?:\{([^}]*)\})?", text)

    assert {name for name, _ in named} - known.keys() == set()
    for name, matchers in named:
        assert set(re.findall(r"(\w+)\s*[=!]", matchers)) <= known[name], name


def families() -> set[str]:
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in catalogue()}


def not_metrics() -> set[str]:
    """Tables, columns, views; roles, the slot and the publication of deploy/."""
    views = {name for path in ROOT.glob("consumer/postgres/**/*.py") for name in VIEWS.findall(path.read_text())}
    scripts = [path for folder in ("postgres", "debezium") for path in (ROOT / "deploy" / folder).iterdir()]
    named = {name for path in scripts for name in re.findall(r"\bconversation_\w+", path.read_text())}
    return views | named | {name for table in metadata.tables.values() for name in (table.name, *table.columns.keys())}


def test_the_dashboard_is_as_generated() -> None:
    assert DASHBOARD.read_text() == as_json()


def test_panels_fill_the_width_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        columns, lines = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        cells = set(product(columns, lines))
        assert not cells & taken, panel["title"]
        assert columns.stop <= 24
        taken |= cells
    assert len(taken) == 24 * (1 + max(y for _, y in taken))


def test_grafana_finds_the_dashboard_and_its_source() -> None:
    (source,) = (GRAFANA / "provisioning" / "datasources").glob("*.yaml")
    (provider,) = (GRAFANA / "provisioning" / "dashboards").glob("*.yaml")

    assert yaml.safe_load(source.read_text())["datasources"][0]["url"] == "http://prometheus:9090"
    assert yaml.safe_load(provider.read_text())["providers"][0]["type"] == "file"
