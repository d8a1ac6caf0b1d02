"""Pictures of a run as SVG text: curves over the steps, and numbers of layers and heads."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

Points = Sequence[tuple[float, float]]

# Text stays text, so that it can be searched and takes the font of the page; names of parts do not depend on chance.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif"}


def curves(lines: Mapping[str, Points], label: str, *, log: bool = False) -> str:
    """Returns lines over the steps, one for each name."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, marker="o" if len(points) < 20 else None, markersize=3, label=name)
    axes.set(xlabel="step", ylabel=label, yscale="log" if log else "linear")
    low, high = axes.get_ylim()
    if log and high < 30 * low:  # as a gradient norm often stays, and powers of ten alone would say little
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    if len(lines) > 1:
        axes.legend()
    return _svg(figure)


def by_head(values: npt.NDArray[np.floating], label: str) -> str:
    """Returns a picture of [L, H] positive numbers on a logarithmic scale: layers from the top down, heads across."""
    layers, heads = values.shape
    figure = Figure(figsize=(6, max(1.6, min(6.0, 1 + 0.3 * layers))), layout="constrained")
    axes = figure.subplots()
    finite = np.where(np.isfinite(values) & (values > 0), values, np.nan)
    image = axes.imshow(np.log10(finite), aspect="auto", cmap="viridis")
    axes.set(xlabel="head", ylabel="layer")
    if layers * heads <= 64:
        axes.set_xticks(range(heads))
        axes.set_yticks(range(layers))
        for (layer, head), value in np.ndenumerate(values):
            box = {"facecolor": "white", "alpha": 0.6, "edgecolor": "none", "pad": 1}
            axes.text(head, layer, f"{value:.3g}", ha="center", va="center", fontsize=8, bbox=box)
    figure.colorbar(image, label=f"log10 of {label}")
    return _svg(figure)


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    with rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
