"""Attention dilution: how much of its attention a token pays to its neighbourhood, by layer.

l(i, r, N) is the sum of p_ij over a window of r N tokens around token i (arXiv 2210.10340, section 3). At the ends of
a row the window is shifted to stay within it, so that l is 1 at r = 1. This command takes the mean over tokens, heads
and rows. p_ij is softmax(s) or s / sum(s); where the attention is not normalised (norm_t1, norm_t2, diag_t1), it is |s|
or relu(s) over its sum, and a diagonal attention has weights in its block alone. "uniform" is a token that looks at all
tokens that it may see alike.

    python -m benchmarks.dilution --workdirs=runs/softmax,runs/linear,runs/t2
    python -m benchmarks.dilution --attentions=softmax,linear,t2          # at initialisation

Rows are of the evaluation split. Writes a JSON file and a plot. The last line on stdout is a summary in JSON.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from benchmarks.attention_subjects import load_subjects, text_config
from benchmarks.environment import hardware
from benchmarks.plot import Panel, save_panels
from benchmarks.record import check_positive, main, prepare, write

_SUMMARY_SHARE = 0.2


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
      shares: values of r.
    """

    workdirs: tuple[str, ...] = ()
    attentions: tuple[str, ...] = ("softmax", "linear", "performer", "t1", "t2")
    files: str = ""
    data_dir: str = ""
    rows: int = 8
    length: int = 256
    shares: tuple[float, ...] = tuple(i / 20 for i in range(1, 21))

    def __post_init__(self):
        check_positive(self)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Reads the matrices, prints a table, writes `output` and the plot beside it, and returns the summary."""
    prepare(output)
    fresh = [text_config(word, settings.files, settings.data_dir, settings.length) for word in settings.attentions]
    subjects = load_subjects(settings.workdirs, fresh, settings.rows, settings.length)
    records, summary = list[dict[str, Any]](), dict[str, Any]()
    for subject in subjects:
        layers = [_mean(p, settings.shares) for p in subject.distributions()]
        num_tokens = subject.batch["segment_ids"].shape[1]
        seen = jnp.tri(num_tokens) if subject.config.causal else jnp.ones((num_tokens, num_tokens))
        uniform = _mean(seen / jnp.sum(seen, axis=1, keepdims=True), settings.shares)
        about = {"name": subject.name, "step": subject.step, "attentions": subject.config.attentions}
        records.append({**about, "num_tokens": num_tokens, "layers": layers, "uniform": uniform})
        near = [round(float(np.interp(_SUMMARY_SHARE, settings.shares, x)), 4) for x in (*layers, uniform)]
        summary[subject.name] = {"layers": near[:-1], "uniform": near[-1]}
        print(f"{subject.name:<24} l at r = {_SUMMARY_SHARE} by layer: {near[:-1]}, uniform {near[-1]}", flush=True)

    content = {"models": records, "share": _SUMMARY_SHARE, "summary": summary}
    environment = write(output, command_line, settings, content)
    depth = max(len(record["layers"]) for record in records)
    panels = []
    for record in records:
        lines = {f"layer {i + 1}": list[tuple[float, float]]() for i in range(depth)} | {"uniform": []}
        curves = {f"layer {i + 1}": curve for i, curve in enumerate(record["layers"])}
        for name, curve in (curves | {"uniform": record["uniform"]}).items():
            lines[name] = list(zip(settings.shares, curve, strict=True))
        panels.append(Panel(f"{record['name']}, step {record['step']}", "accumulated attention l", lines, "linear"))
    save_panels(
        panels,
        title=f"Attention within a window of r N tokens; {hardware(environment)}",
        xlabel="r",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **summary}


def accumulated(p: Float[Array, "*rows N N"], share: float) -> Float[Array, "*rows N"]:
    """l(i, r, N): the sum of p_ij over the window of round(r N) tokens around i that lies within the row."""
    num_tokens = p.shape[-1]
    width = min(max(round(share * num_tokens), 1), num_tokens)
    token = jnp.arange(num_tokens)
    start = jnp.clip(token - width // 2, 0, num_tokens - width)[:, None]
    inside = (token[None] >= start) & (token[None] < start + width)
    return jnp.sum(p, axis=-1, where=jnp.broadcast_to(inside, p.shape))


def _mean(p: jax.Array, shares: tuple[float, ...]) -> list[float]:
    return [float(jnp.mean(accumulated(p, share))) for share in shares]


if __name__ == "__main__":
    main("dilution", Settings(), run)
