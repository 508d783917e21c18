"""Figures and goals: as a table on the terminal, as JSON, as Markdown for the docs, as a picture."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tests.model.documents import DOCS, write_section

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
PICTURE = HERE / "throughput.png"


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure and what it should come to: at least so much, or at most."""

    name: str
    figure: float
    wanted: float
    at_most: bool = False
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.figure <= self.wanted if self.at_most else self.figure >= self.wanted

    @property
    def cells(self) -> tuple[str, str, str, str]:
        sign = "≤" if self.at_most else "≥"
        figure, wanted = _shown(self.figure, self.unit), _shown(self.wanted, self.unit)
        return self.name, figure, f"{sign} {wanted}", "met" if self.met else "not met"


@dataclass(slots=True)
class Results:
    """What a run of the benchmark has found. `rates`: events per second by competitor and round.

    `left_out`: which parts could not be measured, and why. Such a run is not saved.
    """

    command: str
    machine: str
    competitors: dict[str, str]
    rates: dict[str, list[float]] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def rate(self, letter: str) -> float:
        return median(self.rates[letter])

    def add(self, *goals: Goal) -> None:
        self.goals.extend(goals)

    def as_json(self) -> dict[str, Any]:
        goals = [dict(zip(("name", "figure", "goal", "verdict"), goal.cells, strict=True)) for goal in self.goals]
        return {
            "command": self.command,
            "machine": self.machine,
            "competitors": self.competitors,
            "events_per_second": {letter: [round(rate) for rate in rates] for letter, rates in self.rates.items()},
            "goals": goals,
            "tables": self.tables,
        }


def _shown(figure: float, unit: str) -> str:
    number = f"{figure:,.0f}" if figure >= 100 else f"{figure:.1f}" if figure >= 10 else f"{figure:.2f}"
    return f"{number} x" if unit == "x" else f"{number} {unit}"


def show(console: Console, results: Results) -> None:
    for title, rows in _tables(results.as_json()).items():
        if len(rows) > 1:
            show_table(console, title, rows)


def show_table(console: Console, title: str, rows: Sequence[Sequence[str]]) -> None:
    """The first of the rows is the heading."""
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    console.print(table)


def markdown(data: dict[str, Any]) -> str:
    """For the docs: `data` is the JSON of a run."""
    parts = [f"`{data['command']}`, {data['machine']}:"]
    for title, (heading, *rows) in _tables(data).items():
        lines = [f"| {' | '.join(row)} |" for row in (heading, ["---"] * len(heading), *rows)]
        parts.append("\n".join((f"**{title}**", "", *lines)))
    return "\n\n".join(parts)


def _tables(data: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Title -> rows, the first of them the heading."""
    rates = {letter: median(rounds) for letter, rounds in data["events_per_second"].items()}
    rows = [["", "what", "events/s", "of E"]]
    rows += [
        [letter, data["competitors"][letter], f"{rate:,.0f}", f"{rate / rates['E']:.3g}"]
        for letter, rate in rates.items()
    ]
    goals = [["goal", "figure", "wanted", ""], *([*goal.values()] for goal in data["goals"])]
    return {"Side by side": rows, **data["tables"], "Goals": goals}


def save(results: Results) -> None:
    """Into the repository: the JSON, the picture, the figures of the docs. What was not measured now stays."""
    data = merged(json.loads(RESULTS.read_text()), results.as_json())
    RESULTS.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")
    write_section(DOCS / "performance.md", "benchmark", markdown(data))
    draw(data)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """The figures of a run, and of the runs before it those that it has not measured."""
    goals = {goal["name"]: goal for goal in (*old["goals"], *new["goals"])}
    return {
        **new,
        "events_per_second": new["events_per_second"] or old["events_per_second"],
        "tables": {**old["tables"], **new["tables"]},
        "goals": list(goals.values()),
    }


def draw(data: dict[str, Any]) -> None:
    """A bar for each competitor, on a scale that shows the slow ones too."""
    import matplotlib as mpl  # noqa: PLC0415 - takes half a second, and only this needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only once the backend is chosen

    rates = {letter: median(rounds) for letter, rounds in data["events_per_second"].items()}
    names = [f"{letter}  {data['competitors'][letter]}" for letter in rates]
    figure, axes = plt.subplots(figsize=(10, 0.45 * len(rates) + 1))
    colours = ["#2b6cb0" if letter.startswith("E") else "#a0aec0" for letter in rates]
    bars = axes.barh(names, list(rates.values()), color=colours)
    axes.bar_label(bars, [f"{rate:,.0f}" for rate in rates.values()], padding=4)
    axes.set_xscale("log")
    axes.set_xlabel(f"events per second, {data['machine']}")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def table(heading: Sequence[str], *rows: Sequence[object]) -> list[list[str]]:
    return [list(heading), *([str(cell) for cell in row] for row in rows)]
