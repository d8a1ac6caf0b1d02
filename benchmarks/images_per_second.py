"""Images per second of autoregressive models, by attention: tables 1 and 2 of "Transformers are RNNs".

Models are as in that paper (arXiv 2006.16236, section 4.2 and appendix C): 8 layers for the 784 bytes of MNIST, 16 for
the 3,072 of CIFAR-10, D = 256, H = 8, F = 1024. Weights are random: speed does not depend on them. Every attention is
measured at several batch sizes, and the one with the most images per second counts.

- "linear" and "softmax_cached" draw some bytes with `sample_images`' loop. Each byte takes equally long, as the cache
  has its full size from the first byte on.
- "softmax_recomputing", "lsh_1" and "lsh_4" make one forward pass of the whole row per byte, as
  `sample_images_recomputing` does; one pass is measured.
- "softmax_cached_half" and "softmax_recomputing_half" are the same with half the length. About so much would the mean
  byte take, were a program compiled for each length instead: no implementation of ours, but the harder comparison.

The time of an image is the time per byte x (N - 1).

    python -m benchmarks.images_per_second
    python -m benchmarks.images_per_second --images=cifar10 --batch_sizes=1,16,256,1024 --dtype=bfloat16
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.common import Measurement, Panel, Record, check_known, check_positive, main, measure
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.papers.image_sampling import sample_from_cache
from transnormer_jax.papers.models import ImageModel

_NUM_MIXTURES = 10


class Images(NamedTuple):
    """A table of the paper.

    Attributes:
      num_bytes: N, of an image.
      num_layers: of the model.
      lsh_chunk: tokens per chunk of LSH attention.
    """

    num_bytes: int
    num_layers: int
    lsh_chunk: int


class Contender(NamedTuple):
    """An attention and a way to sample; `share` of the row is how long it is while a byte is drawn."""

    attention: str
    cached: bool
    share: float = 1.0
    lsh_rounds: int = 1


CONTENDERS = {
    "linear": Contender("linear", cached=True),
    "softmax_cached": Contender("softmax", cached=True),
    "softmax_cached_half": Contender("softmax", cached=True, share=0.5),
    "softmax_recomputing": Contender("softmax", cached=False),
    "softmax_recomputing_half": Contender("softmax", cached=False, share=0.5),
    "lsh_1": Contender("lsh", cached=False, lsh_rounds=1),
    "lsh_4": Contender("lsh", cached=False, lsh_rounds=4),
}


IMAGES = {
    "mnist": Images(num_bytes=784, num_layers=8, lsh_chunk=29),
    "cifar10": Images(num_bytes=3072, num_layers=16, lsh_chunk=37),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      images: "mnist" or "cifar10".
      contenders: among linear, softmax_cached, softmax_recomputing, both of these with _half, lsh_1, lsh_4.
      batch_sizes: numbers of images drawn at once.
      dtype: of the computation.
      bytes_per_call: how many bytes a timed call with a cache draws.
      seconds: how long each call is repeated, three times at least.
      max_call_seconds: a batch is left out if its call, judged by that of the batch before, would take longer.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      preset: "paper", or "tiny" models and images for tests.
    """

    images: tuple[str, ...] = tuple(IMAGES)
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    dtype: str = "float32"
    bytes_per_call: int = 32
    seconds: float = 1.0
    max_call_seconds: float = 4.0
    max_gigabytes: float = 5.0
    preset: str = "paper"

    def __post_init__(self):
        check_positive(self)
        check_known("images", self.images, IMAGES)
        check_known("contenders", self.contenders, CONTENDERS)
        check_known("dtype", [self.dtype], ("float32", "bfloat16"))
        check_known("preset", [self.preset], ("paper", "tiny"))


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, prints and records after each contender, then plots, and returns the summary."""
    cost_model = "seconds per image = seconds per byte x (N - 1) / batch"
    rows, tables = list[dict[str, Any]](), dict[str, Any]()
    for name in settings.images:
        table = dict[str, Any]()
        for contender in settings.contenders:
            found = list(_measure_batches(name, contender, settings))
            rows += found
            table[contender] = _best(found)
            print(f"{name} {contender}: {json.dumps(table[contender])}", flush=True)
            tables[name] = {"table": table, "ratios": ratios(table)}
            record.write(cost_model=cost_model, rows=rows, summary=tables)
    panels = [_panel(name, rows, settings) for name in settings.images]
    record.plot(panels, title=f"Sampling images, {settings.dtype}", xlabel="images at once")
    return {name: table["ratios"] for name, table in tables.items()}


def ratios(table: dict[str, Any]) -> dict[str, float]:
    """Images per second of linear attention over the others'."""
    speeds = {name: row["images_per_second"] for name, row in table.items() if "images_per_second" in row}
    linear = speeds.pop("linear", 0.0)
    return {f"linear_over_{name}": linear / speed for name, speed in speeds.items() if linear}


def make_model(name: str, contender: str, settings: Settings) -> ImageModel:
    """The paper's model; of the preset "tiny", one of a single layer."""
    images, (attention, _, _, lsh_rounds) = IMAGES[name], CONTENDERS[contender]
    small = {"num_layers": 1, "model_dim": 32, "num_heads": 2, "feed_forward_dim": 64, "lsh_buckets": 4, "lsh_chunk": 8}
    size = {"num_layers": images.num_layers, "lsh_buckets": 64, "lsh_chunk": images.lsh_chunk}
    config = BaselineConfig.preset(
        "linear_transformer",
        attention=attention,
        lsh_rounds=lsh_rounds,
        max_length=num_bytes(name, settings),
        dtype=settings.dtype,
        **(small if settings.preset == "tiny" else size),
    )
    return ImageModel(config, _NUM_MIXTURES)


def num_bytes(name: str, settings: Settings) -> int:
    """N, of an image."""
    return 33 if settings.preset == "tiny" else IMAGES[name].num_bytes


def _measure_batches(name: str, contender: str, settings: Settings) -> Iterator[dict[str, Any]]:
    model = make_model(name, contender, settings)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    before: tuple[int, float] | None = None
    for batch in sorted(set(settings.batch_sizes)):
        expected = before[1] * batch / before[0] if before else 0.0
        if expected > settings.max_call_seconds:
            result = Measurement(skipped=f"a call would take up to {expected:.0f} s")
        else:
            call, operands, drawn = _call(model, name, contender, batch, settings)
            limits = {"max_gigabytes": settings.max_gigabytes, "seconds": settings.seconds}
            result = measure(call, (params, *operands), **limits)
        row = {"images": name, "contender": contender, "batch": batch}
        if result.median_ms is None:
            yield row | {"skipped": result.skipped}
            continue
        before = batch, result.median_ms / 1e3
        seconds_per_byte = result.median_ms / 1e3 / drawn
        yield row | {
            "milliseconds_per_byte": 1e3 * seconds_per_byte,
            "seconds_per_batch": seconds_per_byte * (num_bytes(name, settings) - 1),
            "images_per_second": batch / (seconds_per_byte * (num_bytes(name, settings) - 1)),
            "calls": result.repeats,
            "compiler_temp_bytes": result.compiler_temp_bytes,
        }


def _call(
    model: ImageModel, name: str, contender: str, batch: int, settings: Settings
) -> tuple[Callable[..., Any], tuple[jax.Array, ...], int]:
    """A function of the parameters and more that draws some bytes, the more, and how many bytes."""
    _, cached, share, _ = CONTENDERS[contender]
    length = round(share * (num_bytes(name, settings) - 1))
    # Operands, and different in every row: of constants and of equal rows, a compiler could spare itself work.
    key = jax.random.key(1)
    tokens = jax.random.randint(key, (batch, length), 0, 256, jnp.int32)
    if not cached:
        return lambda params, tokens: model.apply({"params": params}, tokens), (tokens,), 1

    def draw(params: Any, key: jax.Array, first: jax.Array) -> Any:
        places = jnp.arange(1, 1 + settings.bytes_per_call)
        return sample_from_cache(model, params, key, first, model.init_cache(batch, length), places)

    return draw, (key, tokens[:, 0]), settings.bytes_per_call


def _best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of the table: the batch with the most images per second, and an image alone."""
    measured = [row for row in rows if "skipped" not in row]
    if not measured:
        return {"skipped": rows[0]["skipped"]}
    best = max(measured, key=lambda row: row["images_per_second"])
    table = {key: best[key] for key in ("images_per_second", "batch")}
    if measured[0]["batch"] == 1:
        table["seconds_per_image_alone"] = measured[0]["seconds_per_batch"]
    return table


def _panel(name: str, rows: list[dict[str, Any]], settings: Settings) -> Panel:
    """What the library's samplers do; names are short, for the legend to fit."""
    lines = {
        contender.removeprefix("softmax_"): [
            (row["batch"], row["images_per_second"])
            for row in rows
            if (row["images"], row["contender"]) == (name, contender) and "skipped" not in row
        ]
        for contender in settings.contenders
        if CONTENDERS[contender].share == 1
    }
    return Panel(f"{name}: {num_bytes(name, settings)} bytes", "images per second", lines)


if __name__ == "__main__":
    main("images_per_second", Settings(), run)
