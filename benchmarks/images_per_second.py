"""Images per second of autoregressive models, by attention: tables 1, 2 and 5 of "Transformers are RNNs".

Models are as in that paper (arXiv 2006.16236, section 4.2 and appendix C): 8 layers for the 784 bytes of MNIST, 16 for
the 3,072 of CIFAR-10, D = 256, H = 8, F = 1024. Weights are random: speed does not depend on them. Every attention is
measured at several batch sizes, and the one with the most images per second counts.

- "linear" and "softmax_cached" draw some bytes with `sample_images`' loop. Each byte takes equally long, as the cache
  has its full size from the first byte on.
- "softmax_recomputing", "lsh_1" and "lsh_4" make one forward pass of the whole row per byte, as
  `sample_images_recomputing` does; one pass is measured.
- "softmax_cached_half" and "softmax_recomputing_half" are the same with half the length. About so much would the mean
  byte take, were a program compiled for each length instead: no implementation of ours, but the harder comparison.

The time of an image is the time per byte x (N - 1); the field "extrapolated" says so. Where it promises to take less
than --whole_seconds, the best batch is also drawn from the first byte to the last, and that time counts instead.

    python -m benchmarks.images_per_second
    python -m benchmarks.images_per_second --images=cifar10 --batch_sizes=1,16,256,1024 --dtype=bfloat16
"""

import dataclasses
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks.environment import describe_environment, hardware
from benchmarks.measure import Measurement, measure
from benchmarks.plot import Panel, save_panels
from transnormer_jax import command
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.inference.images import sample_from_cache, sample_images, sample_images_recomputing
from transnormer_jax.models import ImageModel, TransNormerConfig

_NUM_MIXTURES = 10


class Images(NamedTuple):
    """A table of the paper.

    Attributes:
      num_bytes: N, of an image.
      num_layers: of the model.
      lsh_chunk: tokens per chunk of LSH attention.
      published: images per second on a GPU, each attention with a batch of its own (tables 1 and 2).
      published_cpu: seconds for one image on a CPU (table 5).
    """

    num_bytes: int
    num_layers: int
    lsh_chunk: int
    published: dict[str, float]
    published_cpu: dict[str, float]


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


_IN_PAPER = ("linear", "softmax_cached", "softmax_recomputing", "lsh_1", "lsh_4")


def _published(*values: float) -> dict[str, float]:
    return dict(zip(_IN_PAPER, values, strict=True))


IMAGES = {
    "mnist": Images(
        num_bytes=784,
        num_layers=8,
        lsh_chunk=29,
        published=_published(142.8, 7.56, 0.45, 0.68, 0.27),
        published_cpu=_published(5.5, 7.4, 72.6, 46.0, 112.0),
    ),
    "cifar10": Images(
        num_bytes=3072,
        num_layers=16,
        lsh_chunk=37,
        published=_published(17.85, 0.32, 0.004, 0.015, 0.005),
        published_cpu=_published(45.1, 71.9, 8651.4, 2318.9, 5263.7),
    ),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      images: names in `IMAGES`.
      contenders: names in `CONTENDERS`.
      batch_sizes: numbers of images drawn at once.
      dtype: of the computation.
      bytes_per_call: how many bytes a timed call with a cache draws.
      seconds: how long each call is repeated, three times at least.
      max_call_seconds: a batch is left out if its call, judged by that of the batch before, would take longer.
      whole_seconds: a batch of whole images is drawn if that promises to take less.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      quick: tiny models and images: to see that it works, not to be reported.
    """

    images: tuple[str, ...] = tuple(IMAGES)
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    batch_sizes: tuple[int, ...] = (1, 8, 64)
    dtype: str = "float32"
    bytes_per_call: int = 32
    seconds: float = 1.0
    max_call_seconds: float = 4.0
    whole_seconds: float = 30.0
    max_gigabytes: float = 5.0
    quick: bool = False

    def __post_init__(self):
        for field, known in (("images", IMAGES), ("contenders", CONTENDERS)):
            for name in getattr(self, field):
                if name not in known:
                    raise UserError(f"unknown name {name!r} in {field}: {did_you_mean(name, known)}")
        if self.dtype not in ("float32", "bfloat16"):
            raise UserError(f"unknown dtype {self.dtype!r}: choose float32 or bfloat16.")
        if not (self.images and self.contenders and self.batch_sizes):
            raise UserError("there is nothing to measure: give at least one image, contender and batch size.")
        numbers = (*self.batch_sizes, self.bytes_per_call, self.seconds, self.max_call_seconds, self.max_gigabytes)
        if not min(numbers) > 0:
            raise UserError("batch sizes, bytes_per_call and limits must be positive.")


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints a line for each measurement, writes `output` and a plot beside it; returns the summary.

    Raises:
      UserError: `output` does not end in `.json`, or its directory cannot be made.
    """
    if output.suffix != ".json":
        raise UserError(f"output is {str(output)!r}: give a name that ends in .json.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory of {str(output)!r} ({error}): choose another output.") from error
    environment = describe_environment()
    rows, tables = list[dict[str, Any]](), dict[str, Any]()
    for name in settings.images:
        table = dict[str, Any]()
        for contender in settings.contenders:
            found = list(_measure_batches(name, contender, settings))
            rows += found
            table[contender] = _best(name, contender, found, settings)
            print(f"{name} {contender}: {json.dumps(table[contender])}", flush=True)
        tables[name] = {"table": table, "ratios": ratios(name, table)}
    record = {
        "command": command_line,
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "cost_model": "seconds per image = seconds per byte x (N - 1) / batch, where a table's row says extrapolated",
        "rows": rows,
        "summary": tables,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    save_panels(
        [_panel(name, rows, settings) for name in settings.images],
        title=f"Sampling images on {hardware(environment)}, {settings.dtype}",
        xlabel="images at once",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **{name: table["ratios"] for name, table in tables.items()}}


def ratios(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """Images per second of linear attention over the others', measured and as published."""
    published = IMAGES[name].published
    linear = table.get("linear", {}).get("images_per_second")
    result = {}
    for contender, row in table.items():
        if contender == "linear" or not linear or not row.get("images_per_second"):
            continue
        ratio = {"measured": linear / row["images_per_second"]}
        if contender in published:
            ratio["published"] = published["linear"] / published[contender]
        result[f"linear_over_{contender}"] = ratio
    return result


def make_model(name: str, contender: str, settings: Settings) -> ImageModel:
    """The paper's model; with `quick`, one of a single layer."""
    images, (attention, _, _, lsh_rounds) = IMAGES[name], CONTENDERS[contender]
    small = {"num_layers": 1, "model_dim": 32, "num_heads": 2, "feed_forward_dim": 64, "lsh_buckets": 4, "lsh_chunk": 8}
    size = {"num_layers": images.num_layers, "lsh_buckets": 64, "lsh_chunk": images.lsh_chunk}
    config = TransNormerConfig.preset(
        "linear_transformer",
        attention=attention,
        lsh_rounds=lsh_rounds,
        max_length=num_bytes(name, settings),
        dtype=settings.dtype,
        **(small if settings.quick else size),
    )
    return ImageModel(config, _NUM_MIXTURES)


def num_bytes(name: str, settings: Settings) -> int:
    """N, of an image."""
    return 33 if settings.quick else IMAGES[name].num_bytes


def _measure_batches(name: str, contender: str, settings: Settings) -> Iterator[dict[str, Any]]:
    model = make_model(name, contender, settings)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    before: tuple[int, float] | None = None
    for batch in sorted(set(settings.batch_sizes)):
        expected = before[1] * batch / before[0] if before else 0.0
        if expected > settings.max_call_seconds:
            result = Measurement(skipped=f"a call would take up to {expected:.0f} s")
        else:
            call, drawn = _call(model, name, contender, batch, settings)
            limits = {"max_gigabytes": settings.max_gigabytes, "seconds": settings.seconds}
            result = measure(call, (params,), **limits)
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
            "extrapolated": True,
        }


def _call(
    model: ImageModel, name: str, contender: str, batch: int, settings: Settings
) -> tuple[Callable[..., Any], int]:
    """A function of the parameters that draws some bytes, and how many."""
    _, cached, share, _ = CONTENDERS[contender]
    length = round(share * (num_bytes(name, settings) - 1))
    if not cached:
        return lambda params: model.apply({"params": params}, jnp.zeros((batch, length), jnp.int32)), 1

    def draw(params: Any) -> Any:
        first, places = jnp.zeros(batch, jnp.int32), jnp.arange(1, 1 + settings.bytes_per_call)
        cache = model.init_cache(batch, length)
        return sample_from_cache(model, params, jax.random.key(0), first, cache, places)

    return draw, settings.bytes_per_call


def _best(name: str, contender: str, rows: list[dict[str, Any]], settings: Settings) -> dict[str, Any]:
    """A row of the table: the batch with the most images per second, and an image alone."""
    measured = [row for row in rows if "skipped" not in row]
    if not measured:
        return {"skipped": rows[0]["skipped"]}
    best = max(measured, key=lambda row: row["images_per_second"])
    table = {key: best[key] for key in ("images_per_second", "batch", "extrapolated")}
    if CONTENDERS[contender].share == 1 and best["seconds_per_batch"] < settings.whole_seconds:
        seconds = _draw_whole_images(name, contender, best["batch"], settings)
        table |= {"images_per_second": best["batch"] / seconds, "extrapolated": False}
        table["extrapolated_images_per_second"] = best["images_per_second"]
    if measured[0]["batch"] == 1:
        table["seconds_per_image_alone"] = measured[0]["seconds_per_batch"]
    images = IMAGES[name]
    if contender in images.published:
        table["published_images_per_second"] = images.published[contender]
        table["published_cpu_seconds_per_image_alone"] = images.published_cpu[contender]
    return table


def _draw_whole_images(name: str, contender: str, batch: int, settings: Settings) -> float:
    """Seconds of the library's sampler, compilation left out."""
    model, first = make_model(name, contender, settings), jnp.zeros((batch, 1), jnp.int32)
    sample = sample_images if CONTENDERS[contender].cached else sample_images_recomputing
    params = jax.jit(model.init)(jax.random.key(0), first)["params"]
    operands = params, jax.random.key(0), first
    compiled = sample.lower(model, *operands, num_bytes=num_bytes(name, settings)).compile()
    jax.block_until_ready(operands)
    start = time.perf_counter()
    jax.block_until_ready(compiled(*operands))
    return time.perf_counter() - start


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


def _define_flags() -> None:
    default = Settings()
    flags.DEFINE_list("images", list(default.images), f"Tables, among: {', '.join(IMAGES)}.")
    flags.DEFINE_list("contenders", list(default.contenders), f"What to measure, among: {', '.join(CONTENDERS)}.")
    flags.DEFINE_list("batch_sizes", [str(n) for n in default.batch_sizes], "Numbers of images drawn at once.")
    flags.DEFINE_string("dtype", default.dtype, "float32 or bfloat16.")
    flags.DEFINE_integer("bytes_per_call", default.bytes_per_call, "Bytes that a timed call with a cache draws.")
    flags.DEFINE_float("seconds", default.seconds, "How long to repeat each call; three calls at least.")
    flags.DEFINE_float(
        "max_call_seconds", default.max_call_seconds, "Batches whose calls would take longer are left out."
    )
    flags.DEFINE_float("whole_seconds", default.whole_seconds, "Whole images are drawn if that promises to take less.")
    flags.DEFINE_float(
        "max_gigabytes", default.max_gigabytes, "What needs more memory by the compiler's plan is not run."
    )
    flags.DEFINE_bool("quick", default.quick, "Tiny models and images, to see that it works.")
    flags.DEFINE_string("output", None, "JSON file. Default: benchmarks/results/<platform>/images_per_second.json.")


def _main() -> None:
    values = flags.FLAGS
    try:
        batch_sizes = tuple(int(n) for n in values.batch_sizes)
    except ValueError as error:
        raise UserError(f"batch_sizes is {values.batch_sizes}: give whole numbers, parted by commas.") from error
    fields = {field.name: getattr(values, field.name) for field in dataclasses.fields(Settings)}
    lists = {"images": tuple(values.images), "contenders": tuple(values.contenders), "batch_sizes": batch_sizes}
    output = values.output or f"benchmarks/results/{jax.default_backend()}/images_per_second.json"
    command_line = shlex.join(["python", "-m", "benchmarks.images_per_second", *sys.argv[1:]])
    print(json.dumps(run(Settings(**(fields | lists)), Path(output), command_line)))


if __name__ == "__main__":
    _define_flags()
    command.run(_main)
