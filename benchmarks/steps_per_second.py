"""Steps per second of classifiers of long byte sequences, inference and training, by attention and length.

The comparison of TransNormer (arXiv 2210.10340, table 7, one A6000) at a size for two CPU cores, or at the size of its
models for Long Range Arena's text task. Random bytes; a training step is gradient and AdamW. Ratios to softmax stand
beside the published ones. What the compiler plans too much memory for is not run, and its row says so.

    python -m benchmarks.steps_per_second
    python -m benchmarks.steps_per_second --preset=paper --max_gigabytes=40      # on a GPU

Writes a JSON file and a plot. The last line on stdout is a summary in JSON.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.environment import hardware
from benchmarks.measure import Measurement, measure
from benchmarks.plot import Panel, save_panels
from benchmarks.record import check_known, check_positive, main, prepare, write
from transnormer_jax.models import TransNormerConfig
from transnormer_jax.papers.models import SequenceClassifier
from transnormer_jax.papers.tasks import Classification
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.step import TrainState, make_train_step

COMPUTATIONS = ("inference", "training")
# Steps per second at 1,024 and 5,120 tokens; None did not fit.
PUBLISHED: dict[str, dict[str, dict[int, float | None]]] = {
    "softmax": {"inference": {1024: 39.06, 5120: None}, "training": {1024: 15.34, 5120: None}},
    "performer": {"inference": {1024: 104.17, 5120: 31.25}, "training": {1024: 28.41, 5120: 9.06}},
    "t2": {"inference": {1024: 119.05, 5120: 36.23}, "training": {1024: 29.41, 5120: 10.16}},
}
# Layers, width, heads, rows. The second is the authors' for the text task; the table itself does not say its size.
PRESETS = {"tiny": (1, 32, 2, 1), "small": (2, 128, 4, 1), "paper": (4, 128, 8, 64)}

Found = dict[tuple[str, str, int], Measurement]  # by attention, computation and N


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      attentions: of the models, as in `config.model.attention`.
      num_tokens: values of N.
      preset: "small" (two layers, one row), "paper" (four layers, 64 rows), or "tiny" for tests.
      dtype: of the computation.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      seconds: how long each step is repeated.
    """

    attentions: tuple[str, ...] = ("softmax", "linear", "performer", "t1", "t2")
    num_tokens: tuple[int, ...] = (1024, 2048, 3072, 4096, 5120)
    preset: str = "small"
    dtype: str = "float32"
    max_gigabytes: float = 5.0
    seconds: float = 1.0

    def __post_init__(self):
        check_positive(self)
        check_known("preset", [self.preset], PRESETS)


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints the table and writes `output` as it goes, then the plot beside it, and returns the summary."""
    prepare(output)
    found = Found()
    columns = f"{'steps/s':>9}{'over softmax':>14}{'published':>11}{'temp MB*':>10}"
    print(f"{'N':>6} {'attention':<12}{'computation':<12}{columns}")
    for num_tokens in settings.num_tokens:
        for attention in settings.attentions:
            for computation, result in zip(COMPUTATIONS, _measure(settings, attention, num_tokens), strict=True):
                found[attention, computation, num_tokens] = result
                print(_line(found, attention, computation, num_tokens), flush=True)
            content = {"rows": _rows(found), "published": PUBLISHED, "summary": _summary(found)}
            environment = write(output, command_line, settings, content)
    print("* as the compiler plans it, not a measured peak")

    panels = []
    for computation in COMPUTATIONS:
        lines = {}
        for attention in settings.attentions:
            speeds = [(n, _speed(found, attention, computation, n)) for n in sorted(settings.num_tokens)]
            lines[attention] = [(n, speed) for n, speed in speeds if speed is not None]
        panels.append(Panel(computation, "steps per second", lines))
    layers, width, heads, batch = PRESETS[settings.preset]
    save_panels(
        panels,
        title=f"{layers} layers of {width}, {heads} heads, {batch} rows; {settings.dtype}, {hardware(environment)}",
        xlabel="tokens N",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **_summary(found)}


def _rows(found: Found) -> list[dict[str, Any]]:
    rows = []
    for (attention, computation, num_tokens), result in found.items():
        row = {"attention": attention, "computation": computation, "num_tokens": num_tokens}
        row |= {name: x for name, x in dataclasses.asdict(result).items() if x is not None}
        ratios = {
            "steps_per_second": _speed(found, attention, computation, num_tokens),
            "over_softmax": _over_softmax(found, attention, computation, num_tokens),
            "published_steps_per_second": PUBLISHED.get(attention, {}).get(computation, {}).get(num_tokens),
            "published_over_softmax": _published_over_softmax(attention, computation, num_tokens),
        }
        rows.append(row | {name: x for name, x in ratios.items() if x is not None})
    return rows


def _summary(found: Found) -> dict[str, dict[str, float]]:
    summary: dict[str, dict[str, float]] = {computation: {} for computation in COMPUTATIONS}
    for attention, computation, num_tokens in found:
        ratio = _over_softmax(found, attention, computation, num_tokens)
        if attention != "softmax" and ratio is not None:
            summary[computation][f"{attention} over softmax at {num_tokens}"] = round(ratio, 2)
    return summary


def _measure(settings: Settings, attention: str, num_tokens: int) -> list[Measurement]:
    layers, width, heads, batch_size = PRESETS[settings.preset]
    config = TransNormerConfig.preset(
        "tiny",
        vocab_size=256,
        num_layers=layers,
        model_dim=width,
        num_heads=heads,
        attention=attention,
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=4 * width,
        max_length=num_tokens,
        block_size=64,
        performer_features=width // heads,
        dtype=settings.dtype,
    )
    task = Classification(SequenceClassifier(config, 2))
    optimizer_config = OptimizerConfig(weight_decay=0.0, clip_norm=0.0)
    schedule = make_schedule(optimizer_config, 1000)
    optimizer = make_optimizer(optimizer_config, schedule)
    params = jax.jit(task.init)(jax.random.key(0))
    state: Any = TrainState(jnp.zeros((), jnp.int32), params, jax.jit(optimizer.init)(params))
    inputs = jax.random.randint(jax.random.key(1), (batch_size, num_tokens), 0, 256, jnp.int32)
    batch: Any = {"inputs": inputs, "segment_ids": jnp.ones_like(inputs), "label": jnp.arange(batch_size) % 2}
    limits = {"max_gigabytes": settings.max_gigabytes, "seconds": settings.seconds}
    return [
        measure(task.sums, (params, batch), **limits),
        measure(make_train_step(task, optimizer, schedule, 1), (state, batch), **limits),
    ]


def _line(found: Found, attention: str, computation: str, num_tokens: int) -> str:
    start, result = f"{num_tokens:6d} {attention:<12}{computation:<12}", found[attention, computation, num_tokens]
    speed = _speed(found, attention, computation, num_tokens)
    if speed is None:
        return f"{start} skipped: {result.skipped}"
    ratios = (
        _over_softmax(found, attention, computation, num_tokens),
        _published_over_softmax(attention, computation, num_tokens),
    )
    ours, published = ("" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
    return f"{start}{speed:9.2f}{ours:>14}{published:>11}{(result.compiler_temp_bytes or 0) / 1e6:10.1f}"


def _speed(found: Found, attention: str, computation: str, num_tokens: int) -> float | None:
    result = found.get((attention, computation, num_tokens))
    return None if result is None or result.median_ms is None else 1e3 / result.median_ms


def _over_softmax(found: Found, attention: str, computation: str, num_tokens: int) -> float | None:
    ours, softmax = (_speed(found, name, computation, num_tokens) for name in (attention, "softmax"))
    return None if ours is None or softmax is None else ours / softmax


def _published_over_softmax(attention: str, computation: str, num_tokens: int) -> float | None:
    ours, softmax = (PUBLISHED.get(name, {}).get(computation, {}).get(num_tokens) for name in (attention, "softmax"))
    return None if ours is None or softmax is None else ours / softmax


if __name__ == "__main__":
    main("steps_per_second", Settings(), run)
