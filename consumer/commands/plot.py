"""Pictures of what commands print. matplotlib comes with the extra `plot`."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from consumer.errors import ConfigurationError, ConsumerError

FORMATS = (".png", ".svg", ".pdf")
COLOURS = ("#a0aec0", "#2b6cb0", "#dd6b20", "#38a169", "#805ad5", "#d53f8c", "#718096")
PlotFile = Annotated[
    Path | None, typer.Option("--plot", metavar="FILE", help="Draw it too: .png, .svg or .pdf. Needs the extra `plot`.")
]


def check_plot(file: Path | None) -> None:
    """To be called before the work. Raises `ConfigurationError` if nothing can be drawn there."""
    if file is None:
        return
    if file.suffix.lower() not in FORMATS:
        raise ConfigurationError(f"--plot {file}: the name should end in {', '.join(FORMATS)}")
    if not file.absolute().parent.is_dir():
        raise ConfigurationError(f"--plot {file}: there is no directory {file.absolute().parent}")
    if find_spec("matplotlib") is None:
        raise ConfigurationError("--plot needs matplotlib: pip install 'conversation-consumer[plot]'")


def plot_bars(file: Path, title: str, names: Sequence[str], groups: Mapping[str, Sequence[float]], unit: str) -> None:
    """For each name a bar of each group, side by side. Raises `ConsumerError` if the file cannot be written."""
    import matplotlib as mpl  # noqa: PLC0415 - optional, and takes half a second

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - only once the backend is chosen

    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    width = 0.8 / max(1, len(groups))
    for number, (group, values) in enumerate(groups.items()):
        places = [place + (number - (len(groups) - 1) / 2) * width for place in range(len(names))]
        axes.bar(places, values, width, label=group, color=COLOURS[number % len(COLOURS)])
    axes.set_xticks(range(len(names)), names, rotation=30 if len(names) > 8 else 0)
    axes.set_ylabel(unit)
    axes.set_title(title, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    if groups:
        axes.legend(frameon=False)
    try:
        figure.savefig(file, dpi=110)
    except OSError as error:
        raise ConsumerError(f"--plot {file}: {error.strerror}") from error
    finally:
        plt.close(figure)
