"""What commands print: tables, times, JSON, errors."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

import typer
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

PIPE_WIDTH = 100_000
"""Nothing is wrapped where nobody looks at columns."""
GAP = 3
WORDS = re.compile(r"\s*(?:`[^`]*`\S*|\S+)")
"""What a line is broken between. What is in backticks is a command to copy, and stays whole."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, times in RFC 3339.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")]

out = Console(width=None if sys.stdout and sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
err = Console(stderr=True, highlight=False)


def print_error(error: Exception) -> None:
    err.print(marked("error: ", "bold red", str(error), _error_width()), soft_wrap=True)


def print_problem(text: str) -> None:
    """What is wrong with one of several, to standard error; the command goes on."""
    err.print(Text(wrapped(printable(text), _error_width(), "  "), style="red"), soft_wrap=True)


def print_json(data: object) -> None:
    """One line."""
    typer.echo(json.dumps(data, default=_as_json))


def print_line(text: str, style: str | None = None, indent: str = "") -> None:
    """Wrapped between words on a terminal; `indent` begins the lines after the first."""
    out.print(Text(wrapped(printable(text), out.width, indent), style=style or ""), soft_wrap=True)


def marked(mark: str, style: str, text: str, width: int) -> Text:
    """A text behind a mark of that style, wrapped below its own beginning."""
    lines = Text(wrapped(mark + text, width, " " * cell_len(mark)))
    lines.stylize(style, end=len(mark))
    return lines


def wrapped(text: str, width: int, indent: str = "") -> str:
    """A text with lines of that width at most. A word that is wider is not cut: it has a line of its own."""
    return "\n".join(_wrapped(line, width, indent) for line in text.split("\n"))


def print_table(title: str | None, headings: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    """The first columns as far as they fit, the others named below each row. No cell is ever cut.

    Without rows, a title stands alone.
    """
    cells = [["" if cell is None else printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(headings, *cells, strict=True)]
    fitting = _fitting(widths, out.width)
    if title:
        out.print(Text(title, style="bold"), soft_wrap=True)
    if title and not cells:
        return
    out.print(Text(_line(headings[:fitting], widths), style="dim"), soft_wrap=True)
    for row in cells:
        out.print(Text(_line(row[:fitting], widths)), soft_wrap=True)
        rest = [f"{name} {cell}" for name, cell in zip(headings[fitting:], row[fitting:], strict=True) if cell]
        if rest:
            print_line("    " + ", ".join(rest), indent="    ")


def printable(text: str, keep: str = "") -> str:
    """Control characters as escapes, but those to keep: a producer's text must not drive the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


def moment(at: datetime | None) -> str:
    """A time for people, UTC, to the millisecond."""
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at else ""


def _error_width() -> int:
    return err.width if sys.stderr and sys.stderr.isatty() else PIPE_WIDTH


def _wrapped(line: str, width: int, indent: str) -> str:
    lines = [""]
    for word in WORDS.findall(line):
        if lines[-1].strip() and cell_len(lines[-1] + word) > width:
            lines.append(indent + word.lstrip())
        else:
            lines[-1] += word
    return "\n".join(lines)


def _fitting(widths: Sequence[int], available: int) -> int:
    """How many columns fit; at least one."""
    used = 0
    for count, width in enumerate(widths):
        used += width + GAP
        if used - GAP > available:
            return max(1, count)
    return len(widths)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell + " " * (width + GAP - cell_len(cell)) for cell, width in zip(cells, widths, strict=False))
    return "".join(padded).rstrip()


def _as_json(value: object) -> str:
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else str(value)
