"""Each alert leads to a runbook, and what a runbook says to type exists."""

import re
from typing import Any

import pytest
import typer

from consumer.commands.root import app
from tests.observability.promql import misread
from tests.observability.rules import ROOT, alerts
from tests.observability.runbooks import HEADINGS, QUERY, RUNBOOKS, commands, runbook, table

TEXTS = {path.stem: path.read_text() for path in sorted(RUNBOOKS.glob("*.md"))}
TYPED = sorted({command for text in TEXTS.values() for command in commands(text)})
QUERIES = sorted({query.strip() for text in TEXTS.values() for query in QUERY.findall(text)})


@pytest.mark.parametrize("alert", alerts())
def test_an_alert_leads_to_its_runbook(alert: str) -> None:
    path = runbook(alert)

    assert path == RUNBOOKS / f"{alert}.md"
    assert path.is_file()


def test_every_runbook_belongs_to_an_alert() -> None:
    assert TEXTS.keys() - {"README"} == alerts().keys()


@pytest.mark.parametrize("alert", alerts())
def test_a_runbook_has_its_headings_and_something_to_look_at(alert: str) -> None:
    text = TEXTS[alert]
    severity, summary = alerts()[alert]["labels"]["severity"], alerts()[alert]["annotations"]["summary"]

    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert f"{summary} (`{severity}`)." in text
    assert re.search(r"^    (conversation-consumer|curl) ", text, re.MULTILINE) or QUERY.search(text)


@pytest.mark.parametrize("command", TYPED)
def test_a_command_of_a_runbook_exists_with_its_options(command: str) -> None:
    parse(command)


def test_a_command_with_an_unknown_option_is_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse("offsets show --partition 3")


def parse(command: str) -> None:
    """Reads the command line as the program would, and runs nothing. Raises on a command or an option there is not."""
    parser: Any = typer.main.get_command(app)
    words = command.partition(" #")[0].split()
    with parser.make_context("conversation-consumer", words, resilient_parsing=True) as context:
        while hasattr(parser, "resolve_command") and words:
            name, parser, words = parser.resolve_command(context, words)
    parser.make_context(name, words)


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_a_runbook_reads_what_is_exported(query: str) -> None:
    assert misread(query) == set()


def test_the_documents_list_the_alerts_as_they_are() -> None:
    assert table("") in TEXTS["README"]
    assert table("runbooks/") in (ROOT / "docs" / "operations.md").read_text()
