"""The programs of the documents for upstream teams, as typed, beside a replica."""

import re
from pathlib import Path

from tests.e2e.conftest import Group, group

__all__ = ["DOCS", "as_typed", "blocks", "group"]
DOCS = Path(__file__).parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / document).read_text(), re.DOTALL)


def as_typed(block: str, group: Group) -> str:
    """Only the broker's address and the topic are this test's."""
    return block.replace("localhost:9092", group.kafka.bootstrap_servers).replace("conversation.events", group.topic)
