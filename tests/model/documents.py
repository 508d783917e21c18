"""The parts of the README that follow from the code: `python -m tests.model.documents` writes them anew."""

import re
from collections.abc import Callable
from pathlib import Path

from consumer import settings
from consumer.lifecycle.model import Policy
from tests.model import explorer as lifecycle

README = Path(__file__).parents[2] / "README.md"
SECTIONS: dict[str, Callable[[], str]] = {
    "settings": settings.markdown,
    "lifecycle": lambda: lifecycle.markdown(lifecycle.survey(lifecycle.explored(Policy()))),
}


def regenerated(text: str) -> str:
    """`text` with each section between its two comments as the code has it now."""
    for name, markdown in SECTIONS.items():
        text = with_section(text, name, markdown())
    return text


def with_section(text: str, name: str, body: str) -> str:
    """`text` with `body` between the two comments of section `name`."""
    section = re.compile(rf"(<!-- {name}: [^\n]* -->\n).*(\n<!-- end of {name} -->)", re.DOTALL)
    if not section.search(text):
        raise LookupError(f"the README has no section {name}")
    return section.sub(lambda match: match[1] + body + match[2], text)


if __name__ == "__main__":
    README.write_text(regenerated(README.read_text()))
