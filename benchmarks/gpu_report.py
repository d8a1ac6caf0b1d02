"""What is made of the rows of `benchmarks.gpu`: a table, a comparison by shape, verdicts on the targets, plots."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.attention_report import COMPUTATIONS
from benchmarks.gpu_shapes import SHAPES
from benchmarks.plot import Panel

HEADER = f"{'shape':<15} {'contender':<25} {'computation':<17} {'median ms':>10} {'of floor':>8} {'error':>8}"

# What this library set out to reach on one NVIDIA H200: shape, computation, milliseconds.
TARGETS = (("wide", "forward", 0.71), ("wide", "forward_backward", 2.9), ("row_8k", "forward", 0.075))
_TARGET_DEVICE = "H200"


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender at one shape.

    Attributes:
      contender: a backend of `linear_attention`, or a peer.
      is_peer: which of the two.
      shape: a name in `SHAPES`.
      computation: one of `COMPUTATIONS`.
      floor_ms: the least memory traffic at the speed of a copy, milliseconds.
      result: what its process measured, or `skipped` with the reason.
    """

    contender: str
    is_peer: bool
    shape: str
    computation: str
    floor_ms: float
    result: dict[str, Any]

    @property
    def median_ms(self) -> float | None:
        """Time of a call, or None where there is none."""
        return self.result.get("median_ms")

    def __str__(self) -> str:
        start = f"{self.shape:<15} {self.contender:<25} {self.computation:<17}"
        if self.median_ms is None:
            return f"{start} skipped: {self.result['skipped']}"
        error = max(self.result["relative_rms_error"].values())
        return f"{start} {self.median_ms:10.4f} {self.floor_ms / self.median_ms:8.1%} {error:8.1e}"

    def with_result(self, result: dict[str, Any]) -> "Row":
        """Returns the row once its process has said something."""
        return dataclasses.replace(self, result=result)

    def as_json(self) -> dict[str, Any]:
        """Returns one flat object."""
        row = dataclasses.asdict(self)
        return row | row.pop("result")


def compare(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns, for each shape and computation, the best of our backends and the best of the peers."""
    comparison = []
    for key in dict.fromkeys((row.shape, row.computation) for row in rows):
        here = [row for row in rows if (row.shape, row.computation) == key]
        entry: dict[str, Any] = {"shape": key[0], "computation": key[1], "floor_ms": here[0].floor_ms}
        for name, is_peer in (("best_backend", False), ("best_peer", True)):
            best = _fastest(row for row in here if row.is_peer == is_peer)
            if best is not None:
                entry |= {name: best.contender, f"{name}_ms": best.median_ms}
        comparison.append(entry)
    return comparison


def comparison_lines(comparison: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the comparison as a table for people."""
    lines = [f"{'shape':<15} {'computation':<17} {'floor ms':>9}  {'ours':<36}  {'peer':<31}"]
    for entry in comparison:
        cells = []
        for kind, width in (("best_backend", 25), ("best_peer", 20)):
            cells.append(
                f"{entry[kind]:<{width}} {entry[f'{kind}_ms']:10.4f}" if kind in entry else "-".ljust(width + 11)
            )
        lines.append(f"{entry['shape']:<15} {entry['computation']:<17} {entry['floor_ms']:9.4f}  {'  '.join(cells)}")
    return lines


def judge(comparison: Iterable[dict[str, Any]], device_kind: str) -> list[str]:
    """Returns one sentence for each target; they hold for one device only."""
    by_key = {(entry["shape"], entry["computation"]): entry for entry in comparison}
    verdicts = []
    for shape, computation, limit in TARGETS:
        entry = by_key.get((shape, computation), {})
        if _TARGET_DEVICE not in device_kind:
            verdict = f"not judged, it is for an NVIDIA {_TARGET_DEVICE} and this is {device_kind}"
        elif "best_backend" not in entry:
            verdict = "FAILED, no backend was measured"
        else:
            ours, peer = entry["best_backend_ms"], entry.get("best_peer_ms")
            faster = (
                "no peer was measured" if peer is None else f"{peer / ours:.2f} times as fast as {entry['best_peer']}"
            )
            passed = ours <= limit and (peer is None or ours < peer)
            verdict = f"{'passed' if passed else 'FAILED'}, {entry['best_backend']} takes {ours:.4f} ms; {faster}"
        verdicts.append(f"target {SHAPES[shape].name} {computation} <= {limit:g} ms, faster than every peer: {verdict}")
    return verdicts


def fractions(rows: Sequence[Row], shapes: Sequence[str]) -> list[Panel]:
    """Returns bars, shape by shape: the share of the time that the memory floor accounts for."""
    return [
        Panel(
            computation.replace("_", " and "),
            "memory floor / time",
            {
                name: [
                    (shapes.index(row.shape), row.floor_ms / row.median_ms)
                    for row in rows
                    if (row.contender, row.computation) == (name, computation) and row.median_ms
                ]
                for name in _measured(rows)
            },
        )
        for computation in COMPUTATIONS
    ]


def by_length(rows: Sequence[Row]) -> list[Panel]:
    """Returns time over N for the shapes that differ in N alone, the memory floor among the lines."""
    family = [name for name in ("row_2k", "row_8k", "row_32k") if any(row.shape == name for row in rows)]
    panels = []
    for computation in COMPUTATIONS:
        here = [row for row in rows if row.shape in family and row.computation == computation]
        lines = {"memory floor": sorted({(SHAPES[row.shape].num_tokens, row.floor_ms) for row in here})}
        for name in _measured(rows):
            mine = [row for row in here if row.contender == name]
            lines[name] = sorted((SHAPES[row.shape].num_tokens, row.median_ms) for row in mine if row.median_ms)
        panels.append(Panel(computation.replace("_", " and "), "time [ms]", lines))
    return panels


def _measured(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.contender for row in rows if row.median_ms is not None))


def _fastest(rows: Iterable[Row]) -> Row | None:
    times = [(row.median_ms, i, row) for i, row in enumerate(rows) if row.median_ms is not None]
    return min(times)[2] if times else None
