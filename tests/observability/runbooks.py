"""The runbooks as data: their files, the commands and queries that they name, the tables that list them."""

import re
from pathlib import Path

from tests.observability.rules import ROOT, alerts

RUNBOOKS = ROOT / "docs" / "runbooks"
HEADINGS = ["What it means", "What to look at", "What to do", "When to wake somebody"]
COMMAND = re.compile(r"^ {4,}conversation-consumer (.+)$", re.MULTILINE)
INLINE_COMMAND = re.compile(r"`conversation-consumer (\S[^`]*)`")
QUERY = re.compile(r"```promql\n(.*?)```", re.DOTALL)


def runbook(alert: str) -> Path:
    """Where the alert's `runbook_url` leads."""
    return ROOT / str(alerts()[alert]["annotations"]["runbook_url"])


def commands(text: str) -> list[str]:
    return COMMAND.findall(text) + INLINE_COMMAND.findall(text)


def table(directory: str) -> str:
    """All alerts, with links for a document from which the runbooks are at `directory`."""
    rows = [
        f"| [{name}]({directory}{name}.md) | {rule['annotations']['summary']} | {rule['labels']['severity']} |"
        for name, rule in alerts().items()
    ]
    return "\n".join(["| Alert | Meaning | Severity |", "|---|---|---|", *rows])
