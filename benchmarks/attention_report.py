"""The rows that `benchmarks.attention` measures, and what is made of them: table, JSON, summary, plot."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.measure import Measurement
from benchmarks.plot import Panel

COMPUTATIONS = ("forward", "forward_backward")

HEADER = f"{'N':>7} {'backend':<25} {'computation':<17} {'median ms':>10} {'min ms':>10} {'calls':>6} {'temp MB*':>9}"
FOOTNOTE = "* as the compiler plans it, not a measured peak"

_PANELS = (
    ("Forward", "forward", "median_ms", "time [ms]"),
    ("Forward and backward", "forward_backward", "median_ms", "time [ms]"),
    ("Forward and backward", "forward_backward", "compiler_temp_bytes", "temporary memory by the compiler's plan [B]"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: `computation` is one of `COMPUTATIONS`."""

    backend: str
    computation: str
    num_tokens: int
    measurement: Measurement

    def __str__(self) -> str:
        start = f"{self.num_tokens:7d} {self.backend:<25} {self.computation:<17}"
        result = self.measurement
        if result.skipped is not None:
            return f"{start} skipped: {result.skipped}"
        megabytes = result.compiler_temp_bytes / 1e6
        return f"{start} {result.median_ms:10.2f} {result.min_ms:10.2f} {result.repeats:6d} {megabytes:9.2f}"

    def as_json(self) -> dict[str, Any]:
        """Returns one flat object, without the fields that are unknown."""
        row = dataclasses.asdict(self)
        measurement = row.pop("measurement")
        return row | {name: value for name, value in measurement.items() if value is not None}


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Returns, for each computation, ratios of median times and the growth of the memory of the chunked form.

    Each ratio is that to the chunked form at the largest N at which both ran. The growth is the factor for a doubling
    of N between the two largest N. What the rows do not tell is left out.
    """
    return {name: _time_ratios(rows, name) | _memory_growth(rows, name) for name in COMPUTATIONS}


def panels(rows: Sequence[Row]) -> list[Panel]:
    """Returns the panels of the plot. A row that was not run has no time, but may have its memory."""
    backends = dict.fromkeys(row.backend for row in rows)
    return [
        Panel(title, ylabel, {name: sorted(_points(rows, name, computation, field).items()) for name in backends})
        for title, computation, field, ylabel in _PANELS
    ]


def _time_ratios(rows: Sequence[Row], computation: str) -> dict[str, Any]:
    chunked, ratios = _points(rows, "chunked", computation, "median_ms"), dict[str, Any]()
    for name in dict.fromkeys(row.backend for row in rows if row.backend != "chunked"):
        times = _points(rows, name, computation, "median_ms")
        if common := times.keys() & chunked.keys():
            n = max(common)
            ratios[f"time_{name}_over_chunked"] = {"num_tokens": n, "ratio": round(times[n] / chunked[n], 2)}
    return ratios


def _memory_growth(rows: Sequence[Row], computation: str) -> dict[str, float]:
    points = sorted(_points(rows, "chunked", computation, "compiler_temp_bytes").items())
    if len(points) < 2:
        return {}
    (n1, bytes1), (n2, bytes2) = points[-2:]
    return {"chunked_temp_growth_per_doubling": round((bytes2 / bytes1) ** (1 / math.log2(n2 / n1)), 3)}


def _points(rows: Sequence[Row], backend: str, computation: str, field: str) -> dict[int, float]:
    """Returns N -> the field, where it is known and has a logarithm."""
    values = {
        row.num_tokens: getattr(row.measurement, field)
        for row in rows
        if (row.backend, row.computation) == (backend, computation)
    }
    return {n: value for n, value in values.items() if value}
