"""Time and memory of a Linformer encoder over those of a Transformer, by length n and projected length k.

Linformer's table of inference (arXiv 2006.04768, table 3): layerwise sharing, random data. Speed is the time of one
forward pass of the softmax encoder over that of the Linformer, at the same batch; memory is the ratio of what the
compiler plans beside arguments and results. k is at most n / 2, as published.

    python -m benchmarks.linformer_speed
    python -m benchmarks.linformer_speed --preset=paper --dtype=bfloat16 --max_gigabytes=60      # on a GPU
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.common import Measurement, Panel, Record, check_known, check_positive, main, measure
from transnormer_jax.models import TransNormer
from transnormer_jax.papers.config import BaselineConfig

_COLUMNS = (128, 256, 512, 1024, 2048)
# Layers, width, heads. The last is RoBERTa-base, which the paper trains; its table does not say its size.
PRESETS = {"tiny": (1, 32, 2), "small": (2, 256, 4), "paper": (12, 768, 12)}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      num_tokens: values of n.
      projected: values of k.
      preset: "small" (two layers), "paper" (twelve), or "tiny" for tests.
      batch: rows.
      dtype: of the computation.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      seconds: how long each pass is repeated.
    """

    num_tokens: tuple[int, ...] = (512, 1024, 2048, 4096)
    projected: tuple[int, ...] = _COLUMNS
    preset: str = "small"
    batch: int = 1
    dtype: str = "float32"
    max_gigabytes: float = 5.0
    seconds: float = 1.0

    def __post_init__(self):
        check_positive(self)
        check_known("preset", [self.preset], PRESETS)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, prints and records as it goes, then plots, and returns the summary."""
    rows, summary = list[dict[str, Any]](), dict[str, dict[str, float]]()
    for num_tokens in sorted(settings.num_tokens):
        softmax = _measure(settings, num_tokens, 0)
        for projected in (0, *(k for k in settings.projected if k <= num_tokens // 2)):
            result = _measure(settings, num_tokens, projected) if projected else softmax
            row = {"num_tokens": num_tokens, "projected": projected, **result.known()}
            if projected:
                row |= ratios(softmax, result)
            rows.append(row)
            print(row, flush=True)
            summary = {
                name: {f"n = {r['num_tokens']}, k = {r['projected']}": round(r[name], 2) for r in rows if name in r}
                for name in ("speed", "memory")
            }
            record.write(rows=rows, summary=summary)
    layers, width, heads = PRESETS[settings.preset]
    record.plot(
        [_panel(rows, "speed"), _panel(rows, "memory")],
        title=f"Softmax over Linformer; {layers} layers of {width}, {heads} heads",
        xlabel="tokens n",
    )
    return summary


def ratios(softmax: Measurement, ours: Measurement) -> dict[str, float]:
    """Softmax over Linformer in time and memory, as far as both are known."""
    pairs = {
        "speed": (softmax.median_ms, ours.median_ms),
        "memory": (softmax.compiler_temp_bytes, ours.compiler_temp_bytes),
    }
    return {name: theirs / mine for name, (theirs, mine) in pairs.items() if theirs and mine}


def _measure(settings: Settings, num_tokens: int, projected: int) -> Measurement:
    layers, width, heads = PRESETS[settings.preset]
    config = BaselineConfig.preset(
        "tiny",
        num_layers=layers,
        model_dim=width,
        num_heads=heads,
        attention="linformer" if projected else "softmax",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=4 * width,
        norm="layer_norm",
        max_length=num_tokens,
        linformer_dim=(projected or 1,),
        linformer_sharing="layerwise",
        dtype=settings.dtype,
    )
    model = TransNormer(config)
    tokens = jax.random.randint(jax.random.key(0), (settings.batch, num_tokens), 0, config.vocab_size, jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens[:, :1])

    def encode(variables: Any, tokens: jax.Array) -> Any:
        return model.apply(variables, tokens, method="hidden")[0]

    limits = {"max_gigabytes": settings.max_gigabytes, "seconds": settings.seconds}
    return measure(encode, (variables, tokens), **limits)


def _panel(rows: Sequence[dict[str, Any]], name: str) -> Panel:
    lines: dict[str, list[tuple[float, float]]] = {f"k = {row['projected']}": [] for row in rows if row["projected"]}
    for row in rows:
        if name in row:
            lines[f"k = {row['projected']}"].append((row["num_tokens"], row[name]))
    return Panel(name, "softmax / Linformer", lines)


if __name__ == "__main__":
    main("linformer_speed", Settings(), run)
