"""What commands print fits the terminal, and what is to be copied stays whole."""

import pytest
from rich.cells import cell_len

from consumer.commands.output import marked, wrapped

TEXT = "run `conversation-consumer migrate` first, then look at CONSUMER_DATABASE__URL and at CONSUMER_HTTP__PORT"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_text_is_broken_between_words(width: int) -> None:
    lines = wrapped(TEXT, width, indent="    ").split("\n")

    assert max(map(cell_len, lines)) <= width
    assert " ".join(line.strip() for line in lines) == TEXT


def test_a_command_to_copy_is_never_broken() -> None:
    command = f"`kafka-configs.sh {' '.join(['--option value'] * 10)}`"

    lines = wrapped(f"To limit that: {command}, or wait.", 40)

    assert lines.split("\n") == ["To limit that:", f"{command},", "or wait."]


def test_what_fits_is_left_as_it_is() -> None:
    text = "  two  spaces\n\nand\tmore"

    assert wrapped(text, 80) == text


def test_wide_characters_count_as_two() -> None:
    assert wrapped("会話会話 会話会話", 10).split("\n") == ["会話会話", "会話会話"]


def test_lines_stand_below_the_text_behind_its_mark() -> None:
    text = marked("✗ ", "red", "not as this build needs them", 20)

    assert text.plain == "✗ not as this build\n  needs them"
    assert [(span.start, span.end, span.style) for span in text.spans] == [(0, 2, "red")]
