"""Time and memory of a Linformer encoder over those of a Transformer, by length n and projected length k.

Linformer's table of inference (arXiv 2006.04768, table 3): layerwise sharing, random data. Speed is the time of one
forward pass of the softmax encoder over that of the Linformer, at the same batch; published is the throughput at the
largest batch that fits a V100 of 16 GB. Memory is the ratio of what the compiler plans beside arguments and results;
published is the ratio of the largest batches. k is at most n / 2, as published.

    python -m benchmarks.linformer_speed
    python -m benchmarks.linformer_speed --preset=paper --dtype=bfloat16 --max_gigabytes=60      # on a GPU

Writes a JSON file and a plot. The last line on stdout is a summary in JSON.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import hardware
from benchmarks.measure import Measurement, measure
from benchmarks.plot import Panel, save_panels
from benchmarks.record import check_known, check_positive, main, prepare, write
from transnormer_jax.models import TransNormer, TransNormerConfig

_COLUMNS = (128, 256, 512, 1024, 2048)
# By n: what is faster, and what is saved of memory, for k of the columns as far as the row goes.
_SPEED = {
    512: (1.5, 1.3),
    1024: (1.7, 1.6, 1.3),
    2048: (2.6, 2.4, 2.1, 1.3),
    4096: (3.4, 3.2, 2.8, 2.2, 1.3),
    8192: (5.5, 5.0, 4.4, 3.5, 2.1),
    16384: (8.6, 7.8, 7.0, 5.6, 3.3),
    32768: (13, 12, 11, 8.8, 5.0),
    65536: (20, 18, 16, 14, 7.9),
}
_MEMORY = {
    512: (1.7, 1.5),
    1024: (3.0, 2.9, 1.8),
    2048: (6.1, 5.6, 3.6, 2.0),
    4096: (14, 13, 8.3, 4.3, 2.3),
    8192: (28, 26, 17, 8.5, 4.5),
    16384: (56, 48, 32, 16, 8),
    32768: (56, 48, 36, 18, 16),
    65536: (60, 52, 40, 20, 18),
}
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


@dataclasses.dataclass(frozen=True)
class Row:
    """A length n and a k, 0 for softmax; the ratios are softmax over Linformer, as far as both are known."""

    num_tokens: int
    projected: int
    measurement: Measurement
    speed: float | None = None
    memory: float | None = None

    def __str__(self) -> str:
        name = f"k = {self.projected}" if self.projected else "softmax"
        start, result = f"{self.num_tokens:7d} {name:<10}", self.measurement
        milliseconds = "" if result.median_ms is None else f"{result.median_ms:.1f}"
        megabytes = "" if result.compiler_temp_bytes is None else f"{result.compiler_temp_bytes / 1e6:.1f}"
        n, k = self.num_tokens, self.projected
        ratios = (self.speed, published(_SPEED, n, k), self.memory, published(_MEMORY, n, k))
        columns = "".join(f"{'' if x is None else format(x, '.2f'):>11}" for x in ratios)
        reason = "" if result.skipped is None else f"  skipped: {result.skipped}"
        return f"{start}{milliseconds:>10}{megabytes:>10}{columns}{reason}"

    def as_json(self) -> dict[str, Any]:
        """Returns one flat object, without the fields that are unknown."""
        known = {
            "speed": self.speed,
            "published_speed": published(_SPEED, self.num_tokens, self.projected),
            "memory": self.memory,
            "published_memory": published(_MEMORY, self.num_tokens, self.projected),
            **dataclasses.asdict(self.measurement),
        }
        place = {"num_tokens": self.num_tokens, "projected": self.projected}
        return place | {name: x for name, x in known.items() if x is not None}


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints the table and writes `output` as it goes, then the plot beside it, and returns the summary."""
    prepare(output)
    rows = list[Row]()
    names = ("speed-up", "published", "memory", "published")
    print(f"{'n':>7} {'':<10}{'ms':>10}{'temp MB*':>10}" + "".join(f"{name:>11}" for name in names))
    for row in _measure_all(settings):
        rows.append(row)
        print(row, flush=True)
        content = {"rows": [row.as_json() for row in rows], "summary": _summary(rows)}
        environment = write(output, command_line, settings, content)
    print("* as the compiler plans it, not a measured peak")
    linformers = [row for row in rows if row.projected]
    layers, width, heads = PRESETS[settings.preset]
    save_panels(
        [_panel(linformers, "speed", _SPEED), _panel(linformers, "memory", _MEMORY)],
        title=f"Softmax over Linformer; {layers} layers of {width}, {heads} heads, {hardware(environment)}",
        xlabel="tokens n",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **_summary(rows)}


def published(table: dict[int, tuple[float, ...]], num_tokens: int, projected: int) -> float | None:
    """The paper's number, or None where it has none."""
    values = dict(zip(_COLUMNS, table.get(num_tokens, ()), strict=False))
    return values.get(projected)


def _measure_all(settings: Settings) -> Iterator[Row]:
    for num_tokens in sorted(settings.num_tokens):
        softmax = _measure(settings, num_tokens, 0)
        yield Row(num_tokens, 0, softmax)
        for projected in (k for k in settings.projected if k <= num_tokens // 2):
            ours = _measure(settings, num_tokens, projected)
            speed, memory = (
                _ratio(getattr(softmax, name), getattr(ours, name)) for name in ("median_ms", "compiler_temp_bytes")
            )
            yield Row(num_tokens, projected, ours, speed, memory)


def _summary(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    return {
        name: {
            f"n = {row.num_tokens}, k = {row.projected}": round(ratio, 2)
            for row in rows
            if (ratio := getattr(row, name)) is not None
        }
        for name in ("speed", "memory")
    }


def _measure(settings: Settings, num_tokens: int, projected: int) -> Measurement:
    layers, width, heads = PRESETS[settings.preset]
    config = TransNormerConfig.preset(
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


def _ratio(softmax: float | None, ours: float | None) -> float | None:
    return None if softmax is None or not ours else softmax / ours


def _panel(rows: list[Row], name: str, table: dict[int, tuple[float, ...]]) -> Panel:
    lines = dict[str, list[tuple[float, float]]]()
    for row in rows:
        ratios = (getattr(row, name), published(table, row.num_tokens, row.projected))
        for label, ratio in zip((f"k = {row.projected}", f"k = {row.projected} (published)"), ratios, strict=True):
            points = lines.setdefault(label, [])
            if ratio is not None:
                points.append((row.num_tokens, ratio))
    return Panel(name, "softmax / Linformer", lines)


if __name__ == "__main__":
    main("linformer_speed", Settings(), run)
