"""Panels one beside or below another, under one title and over one legend: lines, or bars."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Panel:
    """One plot.

    Attributes:
      title: what is shown.
      ylabel: quantity and unit.
      lines: name in the legend -> points (x, y), both positive, perhaps none; the same names in every panel.
      scale: "log" of both axes, or "linear", where x and y may be anything.
    """

    title: str
    ylabel: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    scale: str = "log"


def save_panels(panels: Sequence[Panel], *, title: str, xlabel: str, path: Path) -> None:
    """Writes the panels as a PNG file."""
    # A bare Figure draws by Agg: it needs neither a display nor the global state of pyplot.
    figure = Figure(figsize=(5 * len(panels), 5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for ax, panel in zip(axes, panels, strict=True):
        _draw(ax, panel)
        ax.set(title=panel.title, xlabel=xlabel, ylabel=panel.ylabel)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, 2 * len(panels)), frameon=False
    )
    figure.savefig(path, dpi=120)


def save_bars(panels: Sequence[Panel], groups: Sequence[str], *, title: str, path: Path) -> None:
    """Writes bars from 0 to 1 as a PNG file; the x of a point is the index of its group."""
    figure = Figure(figsize=(4 + 1.2 * len(groups), 4 * len(panels)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        width = 0.8 / max(len(panel.lines), 1)
        for i, (name, points) in enumerate(panel.lines.items()):
            left = [x - 0.4 + i * width for x, _ in points]
            ax.bar(left, [y for _, y in points], width, align="edge", color=f"C{i}", label=name)
        ax.set(title=panel.title, ylabel=panel.ylabel, ylim=(0, 1), xlim=(-0.5, len(groups) - 0.5))
        ax.set_xticks(range(len(groups)), groups)
        ax.grid(axis="y", alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def _draw(ax: Axes, panel: Panel) -> None:
    style = "o-" if panel.scale == "log" else "-"
    for name, points in panel.lines.items():
        ax.plot([x for x, _ in points], [y for _, y in points], style, markersize=4, label=name)
    ax.grid(alpha=0.3)
    if panel.scale == "linear":
        return
    ticks = sorted({x for points in panel.lines.values() for x, _ in points})
    if not ticks:  # An empty log axis is an error to matplotlib.
        return
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(ticks, [f"{x:g}" if isinstance(x, float) else str(x) for x in ticks], rotation=45)
    ax.minorticks_off()
