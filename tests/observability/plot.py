"""Draws what a Prometheus answers to the dashboard's queries, laid out as the dashboard is."""

import asyncio
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.observability.dashboard import INTERVAL, PANELS, RANGE, ROWS, Kind, Panel
from tests.observability.run import Recording

WINDOW_SECONDS = 10
COLUMNS = 24
DARK, GREY, GREEN, RED = "#1c2733", "#5f6b76", "#19703e", "#b3261e"
COLOURS = ("#2f6db5", "#e07b39", "#3a9a5c", "#b8443f", "#7d5fb2", "#7a6a55", "#c75c9e", "#5f6b76", "#a39a1f", "#2ba5b5")
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9d1d9",
    "axes.grid": True,
    "grid.color": "#eef1f4",
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
}
LEGEND_CHARACTERS = 72
LEGEND: dict[str, Any] = {
    "loc": "upper left",
    "bbox_to_anchor": (-0.01, -0.14),
    "fontsize": 6.5,
    "frameon": False,
    "borderpad": 0,
    "columnspacing": 1.2,
    "handlelength": 1.2,
    "labelspacing": 0.25,
}
Points = list[tuple[float, float]]
Series = list[tuple[str, Points]]
"""Legend and (time, value) of each line."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered to each panel; the steps of the run, in seconds since its beginning."""

    series: dict[str, Series]
    steps: list[tuple[float, str]]

    @property
    def end(self) -> float:
        return self.steps[-1][0]


async def ask(recording: Recording) -> Answers:
    """Asks all queries of the dashboard over the time of the run."""
    began = recording.steps[0][0]
    answered = await asyncio.gather(*(_ask(recording, panel) for panel in PANELS))
    found = {panel.title: series for panel, series in zip(PANELS, answered, strict=True)}
    return Answers(found, [(moment - began, what) for moment, what in recording.steps])


def substituted(expr: str, range_seconds: float) -> str:
    """Grafana's variables as this run has them."""
    return expr.replace(INTERVAL, f"{WINDOW_SECONDS}s").replace(RANGE, f"{math.ceil(range_seconds)}s")


async def _ask(recording: Recording, panel: Panel) -> Series:
    began, ended, names = recording.steps[0][0], recording.steps[-1][0], recording.names
    found: Series = []
    for legend, expr in panel.queries.items():
        start = ended if panel.kind is Kind.NUMBER else began
        parameters = {"query": substituted(expr, ended - began), "start": f"{start}", "end": f"{ended}", "step": "1"}
        answer = await recording.prometheus.ask("query_range", **parameters)
        lines: Series = []
        for series in answer["result"]:
            labels = {**series["metric"], "instance": names.get(series["metric"].get("instance", ""), "")}
            points = [(float(moment) - began, float(value)) for moment, value in series["values"]]
            lines.append((_legend(legend, labels), points))
        found += sorted(lines)
    return found


def _legend(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def draw(answers: Answers, path: Path) -> None:
    lines = [panel for row in ROWS for panel in _lines(row.panels)]
    heights = [height for row in ROWS for height in (0.1, *(1.0 for _ in _lines(row.panels)))]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 2.3 * len(lines) + 2), facecolor="white")
        grid = GridSpec(len(heights), COLUMNS, figure, height_ratios=heights, hspace=0.85, wspace=8)
        grid.update(left=0.035, right=0.985, top=0.955, bottom=0.03)
        _title(figure, answers)
        number = 0
        for row in ROWS:
            heading = figure.add_subplot(grid[number, :])
            heading.axis("off")
            heading.text(0, 0, row.title, fontsize=11, fontweight="bold", color=DARK, transform=heading.transAxes)
            for panels in _lines(row.panels):
                number += 1
                column = 0
                for panel in panels:
                    _panel(figure.add_subplot(grid[number, column : column + panel.width]), panel, answers)
                    column += panel.width
            number += 1
        figure.savefig(path, dpi=90)


def _lines(panels: tuple[Panel, ...]) -> list[list[Panel]]:
    """Panels side by side, wrapped at the width of the dashboard."""
    lines: list[list[Panel]] = [[]]
    for panel in panels:
        if sum(one.width for one in lines[-1]) + panel.width > COLUMNS:
            lines.append([])
        lines[-1].append(panel)
    return lines


def _title(figure: Figure, answers: Answers) -> None:
    how = (
        "What Prometheus answers to the dashboard's queries, drawn by `make dashboard`, not by Grafana. "
        f"{datetime.now(UTC):%Y-%m-%d}. Rates over {WINDOW_SECONDS} s; deadlines of seconds; some events dated back."
    )
    steps = "     ".join(f"{number}  {what}" for number, (_, what) in enumerate(answers.steps[:-1], start=1))
    figure.text(0.035, 0.985, "conversation-consumer", fontsize=15, fontweight="bold", color=DARK)
    figure.text(0.035, 0.977, how, fontsize=8.5, color=GREY)
    figure.text(0.035, 0.969, steps, fontsize=9, color=DARK)


def _panel(axes: Axes, panel: Panel, answers: Answers) -> None:
    axes.set_title(panel.title, loc="left", fontsize=9, color=DARK, pad=4)
    series = answers.series[panel.title]
    match panel.kind:
        case Kind.NUMBER:
            _number(axes, panel, series)
        case Kind.HEATMAP:
            _heatmap(axes, series)
            _time_axis(axes, answers)
        case Kind.LINES:
            _plot(axes, panel, series)
            _time_axis(axes, answers)


def _number(axes: Axes, panel: Panel, series: Series) -> None:
    axes.axis("off")
    size = 22 if len(series) == 1 else 9
    for line, (legend, points) in enumerate(series):
        value = points[-1][1]
        colour = DARK if panel.good_from is None else GREEN if value >= panel.good_from else RED
        text = formatted(value, panel.unit, precise=panel.good_from is not None)
        text = f"{legend}: {text}" if legend else text
        axes.text(0, 0.85 - 0.2 * line, text, fontsize=size, va="top", color=colour)


def _heatmap(axes: Axes, series: Series) -> None:
    """How many events are in each bucket, logarithmically shaded; buckets are cumulative."""
    ordered = sorted(series, key=lambda one: float(one[0]))
    times = [moment for moment, _ in ordered[0][1]]
    below = [[value for _, value in points] for _, points in ordered]
    nothing = [0.0] * len(times)
    counts = [[high - low for low, high in zip(*two, strict=True)] for two in pairwise([nothing, *below])]
    shades = [[math.log10(1 + max(0.0, value)) for value in line] for line in counts]
    axes.pcolormesh(times, range(len(ordered)), shades, cmap="Oranges", shading="nearest", rasterized=True)
    names = [legend.removesuffix(".0").replace("+Inf", "more") for legend, _ in ordered]
    axes.set_yticks(range(len(ordered)), [name if name in ("0", "more") else f"≤ {name}" for name in names])
    axes.grid(visible=False)


def _plot(axes: Axes, panel: Panel, series: Series) -> None:
    for (legend, points), colour in zip(series, cycle(COLOURS), strict=False):
        axes.plot(*zip(*points, strict=True), linewidth=1.3, color=colour, label=legend or None)
    highest = max((value for _, points in series for _, value in points if not math.isnan(value)), default=0.0)
    axes.set_ylim(0, 1.08 * highest or 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, panel.unit)))
    if any(legend for legend, _ in series):
        longest = max(len(legend) for legend, _ in series)
        axes.legend(**LEGEND, ncols=max(1, LEGEND_CHARACTERS // (longest + 5)))


def _time_axis(axes: Axes, answers: Answers) -> None:
    axes.set_xlim(0, answers.end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for number, (moment, _) in enumerate(answers.steps[:-1], start=1):
        axes.axvline(moment, color="#c9d1d9", linewidth=0.7, linestyle=(0, (3, 3)), zorder=0)
        axes.text(moment, 1, f" {number}", transform=axes.get_xaxis_transform(), fontsize=6, color=GREY, va="top")


def formatted(value: float, unit: str, *, precise: bool = False) -> str:
    match unit:
        case "percentunit":
            return f"{value:.2%}" if precise else f"{100 * value:.3g} %"
        case "bytes":
            return f"{value / 2**20:,.0f} MiB"
        case "s" if value and value < 1:
            return f"{1000 * value:.3g} ms"
        case "s":
            return f"{value:.3g} s"
        case "ops":
            return f"{value:,.3g}/s" if value < 1000 else f"{value:,.0f}/s"
        case _:
            return f"{value:,.0f}" if value >= 1000 or value == int(value) else f"{value:.3g}"
