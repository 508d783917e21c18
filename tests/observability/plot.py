"""Draws what a Prometheus answers to the dashboard's queries, laid out as the dashboard is."""

import asyncio
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tests.observability.dashboard import INTERVAL, PANELS, RANGE, ROWS, Kind, Panel
from tests.observability.run import Recording
from tests.stack.prometheus import Labels, Prometheus

WINDOW_SECONDS = 10
COLUMNS = 24
MAX_LEGEND = 6
COLOURS = ("#2f6db5", "#e07b39", "#3a9a5c", "#b8443f", "#7d5fb2", "#7a6a55", "#c75c9e", "#5f6b76", "#a39a1f", "#2ba5b5")
STYLE = {
    "font.size": 8,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#c9d1d9",
    "axes.grid": True,
    "grid.color": "#eef1f4",
    "axes.axisbelow": True,
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    "xtick.color": "#5f6b76",
    "ytick.color": "#5f6b76",
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
    began, ended = recording.steps[0][0], recording.steps[-1][0]
    answered = await asyncio.gather(*(_ask(recording.prometheus, panel, began, ended) for panel in PANELS))
    found = {panel.title: series for panel, series in zip(PANELS, answered, strict=True)}
    return Answers(found, [(moment - began, what) for moment, what in recording.steps])


def substituted(expr: str, range_seconds: float) -> str:
    """Grafana's variables as this run has them."""
    return expr.replace(INTERVAL, f"{WINDOW_SECONDS}s").replace(RANGE, f"{math.ceil(range_seconds)}s")


async def _ask(prometheus: Prometheus, panel: Panel, began: float, ended: float) -> Series:
    found: Series = []
    for legend, expr in panel.queries.items():
        start = ended if panel.kind is Kind.NUMBER else began
        parameters = {"query": substituted(expr, ended - began), "start": f"{start}", "end": f"{ended}", "step": "1"}
        answer = await prometheus.ask("query_range", **parameters)
        for series in answer["result"]:
            labels = tuple(sorted(series["metric"].items()))
            points = [(float(moment) - began, float(value)) for moment, value in series["values"]]
            found.append((_legend(legend, labels), points))
    return found


def _legend(template: str, labels: Labels) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: dict(labels).get(match[1], ""), template)


def draw(answers: Answers, path: Path) -> None:
    lines = [panel for row in ROWS for panel in _lines(row.panels)]
    heights = [height for row in ROWS for height in (0.16, *(1.0 for _ in _lines(row.panels)))]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(16, 1.75 * len(lines) + 2.4), facecolor="white")
        grid = GridSpec(len(heights), COLUMNS, figure, height_ratios=heights, hspace=0.62, wspace=6.5)
        grid.update(left=0.035, right=0.985, top=0.962, bottom=0.02)
        _title(figure, answers)
        number = 0
        for row in ROWS:
            heading = figure.add_subplot(grid[number, :])
            heading.axis("off")
            heading.text(0, 0, row.title, fontsize=11, fontweight="bold", color="#1c2733", transform=heading.transAxes)
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
    steps = "   ".join(f"{number} {what}" for number, (_, what) in enumerate(answers.steps[:-1], start=1))
    figure.text(0.035, 0.984, "conversation-consumer", fontsize=15, fontweight="bold", color="#1c2733")
    text = (
        f"What Prometheus answers to the dashboard's queries, {datetime.now(UTC):%Y-%m-%d}; drawn by `make dashboard`, "
        f"not by Grafana. Rates over {WINDOW_SECONDS} s, deadlines of seconds.   {steps}"
    )
    figure.text(0.035, 0.974, text, fontsize=9, color="#5f6b76")


def _panel(axes: Axes, panel: Panel, answers: Answers) -> None:
    axes.set_title(panel.title, loc="left", fontsize=9, color="#1c2733", pad=4)
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
        good = panel.good_from is None or value >= panel.good_from
        text = formatted(value, panel.unit, precise=panel.good_from is not None)
        text = f"{legend}: {text}" if legend else text
        axes.text(0, 0.85 - 0.2 * line, text, fontsize=size, va="top", color="#19703e" if good else "#b3261e")


def _heatmap(axes: Axes, series: Series) -> None:
    """The share of the events in each bucket; buckets are cumulative."""
    ordered = sorted(series, key=lambda one: float(one[0]))
    times = [moment for moment, _ in ordered[0][1]]
    below = [[value for _, value in points] for _, points in ordered]
    counts = [below[0], *([high - low for high, low in zip(b, a, strict=True)] for a, b in zip(below, below[1:], strict=False))]
    shades = [[math.log10(1 + max(0.0, value)) for value in line] for line in counts]
    axes.pcolormesh(times, range(len(ordered)), shades, cmap="Oranges", shading="nearest", rasterized=True)
    names = [legend.removesuffix(".0").replace("+Inf", "more") for legend, _ in ordered]
    axes.set_yticks(range(len(ordered)), [name if name in ("0", "more") else f"≤ {name}" for name in names])
    axes.grid(visible=False)


def _plot(axes: Axes, panel: Panel, series: Series) -> None:
    for legend, points in series:
        times, values = zip(*points, strict=True)
        axes.plot(times, values, linewidth=1.3, label=legend or None)
    axes.set_ylim(bottom=0)
    if axes.get_ylim()[1] < 1e-9 or not any(value for _, points in series for _, value in points if value == value):
        axes.set_ylim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: formatted(value, panel.unit)))
    if any(legend for legend, _ in series):
        shown, names = axes.get_legend_handles_labels()
        axes.legend(
            shown[:MAX_LEGEND],
            [*names[: MAX_LEGEND - 1], f"and {len(names) - MAX_LEGEND + 1} more"] if len(names) > MAX_LEGEND else names,
            fontsize=6.5,
            frameon=False,
            loc="upper left",
            borderaxespad=0.1,
            labelspacing=0.2,
            handlelength=1.2,
        )


def _time_axis(axes: Axes, answers: Answers) -> None:
    axes.set_xlim(0, answers.end)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: f"{seconds:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for number, (moment, _) in enumerate(answers.steps[:-1], start=1):
        axes.axvline(moment, color="#c9d1d9", linewidth=0.7, linestyle=(0, (3, 3)), zorder=0)
        axes.text(moment, 1.0, f" {number}", transform=axes.get_xaxis_transform(), fontsize=6, color="#9aa5b1", va="top")


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
