"""What follows from the code in docs/, and the dashboard: `python -m tests.model.documents` writes it anew."""

import re
from collections.abc import Callable
from pathlib import Path

from consumer.commands import config
from consumer.lifecycle.model import Policy
from tests.chaos import documents as chaos
from tests.model import explorer
from tests.observability import grafana, runbooks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SECTIONS: dict[str, tuple[Path, Callable[[], str]]] = {
    "settings": (DOCS / "operations.md", config.markdown),
    "lifecycle": (
        DOCS / "lifecycle.md",
        lambda: explorer.markdown(explorer.survey(explorer.explored(Policy()))),
    ),
    "faults": (DOCS / "reliability.md", chaos.markdown),
    "alerts": (DOCS / "operations.md", lambda: runbooks.table("runbooks/")),
    "runbooks": (DOCS / "runbooks" / "README.md", lambda: runbooks.table("")),
}


def write_section(file: Path, name: str, body: str) -> None:
    """Puts `body` between the two comments of section `name`."""
    section = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*?(\n?<!-- end of {name} -->)", re.DOTALL)
    text = file.read_text()
    if not section.search(text):
        raise LookupError(f"{file.name} has no section {name}")
    file.write_text(section.sub(lambda match: f"{match[1]}{body}\n{match[2].lstrip()}", text))


if __name__ == "__main__":
    for name, (file, markdown) in SECTIONS.items():
        write_section(file, name, markdown())
    grafana.DASHBOARD.write_text(grafana.as_json())
