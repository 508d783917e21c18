"""The dashboard as Grafana's JSON."""

import json
from pathlib import Path
from typing import Any

from tests.observability.dashboard import ROWS, Kind, Panel, Row

DASHBOARD = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "conversation-consumer.json"
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
STEPS_OF_NUMBERS = {"color": "text", "value": None}
VARIABLE = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def as_json() -> str:
    panels: list[dict[str, Any]] = []
    for number, row in enumerate(ROWS):
        panels += _row(row, 100 * (number + 1), panels[-1]["gridPos"]["y"] + HEIGHT if panels else 0)
    dashboard = {
        "title": "conversation-consumer",
        "uid": "conversation-consumer",
        "tags": ["conversation-consumer"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [VARIABLE]},
        "panels": panels,
    }
    return json.dumps(dashboard, indent=2) + "\n"


def _row(row: Row, first_id: int, y: int) -> list[dict[str, Any]]:
    """Its heading and its panels, wrapped at 24 columns."""
    heading = {"id": first_id, "type": "row", "title": row.title, "collapsed": False, "panels": []}
    panels = [{**heading, "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}}]
    x, y = 0, y + 1
    for number, panel in enumerate(row.panels, start=first_id + 1):
        if x + panel.width > 24:
            x, y = 0, y + HEIGHT
        panels.append({"id": number, "gridPos": {"h": HEIGHT, "w": panel.width, "x": x, "y": y}, **_panel(panel)})
        x += panel.width
    return panels


def _panel(panel: Panel) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + number),
            "datasource": SOURCE,
            "expr": expr,
            "legendFormat": legend or panel.title,
            **({"format": "heatmap"} if panel.kind is Kind.HEATMAP else {}),
        }
        for number, (legend, expr) in enumerate(panel.queries.items())
    ]
    return {
        "type": panel.kind.value,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _defaults(panel), "overrides": []},
        "options": _options(panel.kind),
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    match panel.kind:
        case Kind.LINES:
            defaults |= {"min": 0, "custom": {"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}}
        case Kind.NUMBER if panel.good_from is not None:
            steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.good_from}]
            defaults |= {"decimals": 2, "thresholds": {"mode": "absolute", "steps": steps}}
        case Kind.NUMBER:
            defaults |= {"decimals": 0, "thresholds": {"mode": "absolute", "steps": [STEPS_OF_NUMBERS]}}
    return defaults


def _options(kind: Kind) -> dict[str, Any]:
    match kind:
        case Kind.LINES:
            return {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
        case Kind.NUMBER:
            return {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "value", "graphMode": "none"}
        case Kind.HEATMAP:
            return {"calculate": False, "yAxis": {"unit": "short"}, "color": {"scheme": "Oranges"}}
