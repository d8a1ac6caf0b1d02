"""Singular values of attention matrices, by layer: Linformer's claim that softmax attention is of low rank.

Cumulative singular values over their sum (arXiv 2006.04768, section 3 and figure 1), of the N x N matrix that is
multiplied with the values; the mean over heads and rows. The paper's claim: most of the sum is in few values, the more
so in higher layers.

    python -m benchmarks.spectrum --workdirs=runs/softmax
    python -m benchmarks.spectrum --attentions=softmax          # at initialisation

Rows are of the evaluation split. Writes a JSON file and a plot. The last line on stdout is a summary in JSON.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.attention_subjects import load_subjects, text_config
from benchmarks.plot import Panel, save_panels
from benchmarks.record import check_positive, main, prepare, write

_MASS = 0.9


@dataclasses.dataclass(frozen=True)
class Settings:
    """Whose attention to look at.

    Attributes:
      workdirs: of train.py with architecture transnormer; empty takes new models of `attentions`.
      attentions: of new models, as in `config.model.attention`.
      files: text for the new models to read: paths and patterns. Empty takes Python's standard library.
      data_dir: of prepared datasets, for the new models; empty for TFDS's own.
      rows: how many rows to read.
      length: tokens per row, N, at most those of the run.
    """

    workdirs: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ("softmax",)
    files: str = ""
    data_dir: str = ""
    rows: int = 4
    length: int = 512

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Reads the matrices, prints a table, writes `output` and the plot beside it, and returns the summary."""
    prepare(output)
    fresh = [text_config(word, settings.files, settings.data_dir, settings.length) for word in settings.attentions]
    records = list[dict[str, Any]]()
    for subject in load_subjects(settings.workdirs, fresh, settings.rows, settings.length):
        curves = [cumulative(np.asarray(p)).mean(axis=(0, 1)) for p in subject.distributions()]
        # Of N values, how many hold this part of their sum.
        needed = [int(np.argmax(curve >= _MASS)) + 1 for curve in curves]
        about = {"name": subject.name, "step": subject.step, "attentions": subject.config.attentions}
        layers = [curve.round(5).tolist() for curve in curves]
        records.append({**about, "num_tokens": len(layers[0]), "values_for_mass": needed, "layers": layers})
        print(f"{subject.name:<24} of {len(layers[0])} values, {_MASS:.0%} of the sum by layer: {needed}", flush=True)

    summary = {record["name"]: {key: record[key] for key in ("num_tokens", "values_for_mass")} for record in records}
    write(output, command_line, settings, {"models": records, "mass": _MASS, "summary": summary})
    depth = max(len(record["layers"]) for record in records)
    panels = []
    for record in records:
        lines = {f"layer {i + 1}": list[tuple[float, float]]() for i in range(depth)}
        for i, curve in enumerate(record["layers"]):
            lines[f"layer {i + 1}"] = [(index + 1, y) for index, y in enumerate(curve)]
        panels.append(Panel(f"{record['name']}, step {record['step']}", "part of the sum", lines, "linear"))
    save_panels(
        panels, title="Cumulative singular values of attention", xlabel="index", path=output.with_suffix(".png")
    )
    return {"output": str(output), **summary}


def cumulative(matrices: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Sums of the largest singular values over that of all: [..., N, N] to [..., N], rising to 1."""
    values = np.linalg.svd(matrices.astype(np.float64), compute_uv=False)
    return np.cumsum(values, axis=-1) / np.sum(values, axis=-1, keepdims=True)


if __name__ == "__main__":
    main("spectrum", Settings(), run)
