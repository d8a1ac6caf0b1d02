"""Linear attention as an associative scan over tokens, against its other formulations and softmax attention.

For every number of tokens, every backend and both computations (forward; forward and backward, that is the gradients
of q, k and v under a constant decay) this records the wall time of a compiled call and its temporary memory. The memory
is what the compiler plans (`memory_analysis().temp_size_in_bytes`), not a measured peak. "softmax" is causal
`jax.nn.dot_product_attention` as XLA computes it, with the N x N matrix.

What does not fit, fails or is wrong is not timed, and the table and the JSON file say why. A plot is written beside
that file. The last line on stdout is a summary in JSON.

    python -m benchmarks.attention
    python -m benchmarks.attention --batch=4 --heads=16 --head_dim=128 --dtype=bfloat16 --max_gigabytes=60
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.attention_report import FOOTNOTE, HEADER, Row, panels, summarize
from benchmarks.environment import describe_environment, hardware
from benchmarks.measure import Measurement, measure, one_line
from benchmarks.plot import save_panels
from transnormer_jax import command
from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.decay import released_log_decay
from transnormer_jax.ops.linear_attention import linear_attention

# Kernels are measured by benchmarks.gpu, on the hardware that they are for.
CONTENDERS = ("recurrent", "quadratic", "associative_scan", "chunked", "chunked_associative_scan", "softmax")

# The relative RMS error up to which a backend computes the same thing: rounding alone stays well below.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
_CHECKED_TOKENS = 200  # several chunks, the last one ragged
_LAYER, _NUM_LAYERS = 12, 24  # whose decay is taken


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      backends: names among `CONTENDERS`.
      num_tokens: values of N.
      batch: rows B.
      heads: heads H.
      head_dim: features per head, K = V.
      dtype: of q, k and v.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      seconds: how long each call is repeated.
    """

    backends: tuple[str, ...] = CONTENDERS
    num_tokens: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    batch: int = 1
    heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    max_gigabytes: float = 5.0
    seconds: float = 0.5

    def __post_init__(self):
        for name in self.backends:
            if name not in CONTENDERS:
                raise UserError(f"unknown backend {name!r}: {did_you_mean(name, CONTENDERS)}")
        if self.dtype not in _TOLERANCE:
            raise UserError(f"unknown dtype {self.dtype!r}: {did_you_mean(self.dtype, _TOLERANCE)}")
        if not (self.backends and self.num_tokens):
            raise UserError("there is nothing to measure: give at least one backend and one number of tokens.")
        for name in ("num_tokens", "batch", "heads", "head_dim", "max_gigabytes", "seconds"):
            if not np.min(getattr(self, name)) > 0:
                raise UserError(f"{name} is {getattr(self, name)}: give positive numbers only.")


def run(settings: Settings, output: Path, command_line: str) -> dict[str, Any]:
    """Measures, prints the table as it goes, writes `output` and the plot beside it.

    Args:
      settings: what to measure.
      output: the JSON file to write; the plot takes the same name with `.png`.
      command_line: for the record.

    Returns:
      The summary.

    Raises:
      UserError: `output` does not end in `.json`, or its directory cannot be made.
    """
    if output.suffix != ".json":
        raise UserError(f"output is {str(output)!r}: give a name that ends in .json.")
    try:  # Now, rather than after minutes of measuring.
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the directory of {str(output)!r} ({error}): choose another output.") from error

    environment = describe_environment()
    errors, broken = check_backends(settings)
    rows = list[Row]()
    print(HEADER)
    for row in _measure_all(settings, broken):
        rows.append(row)
        print(row, flush=True)
    print(FOOTNOTE)

    summary = summarize(rows)
    record = {
        "command": command_line,
        "environment": environment,
        "settings": dataclasses.asdict(settings),
        "log_decay": _log_decay(settings).tolist(),
        "check": {"num_tokens": _CHECKED_TOKENS, "relative_rms_error": errors},
        "rows": [row.as_json() for row in rows],
        "summary": summary,
    }
    output.write_text(json.dumps(record, indent=1) + "\n")
    shape = f"B = {settings.batch}, H = {settings.heads}, K = V = {settings.head_dim}, {settings.dtype}"
    save_panels(
        panels(rows),
        title=f"Causal attention on {hardware(environment)}; {shape}",
        xlabel="tokens N",
        path=output.with_suffix(".png"),
    )
    return {"output": str(output), **summary}


def check_backends(settings: Settings) -> tuple[dict[str, float], dict[str, str]]:
    """Compares the linear backends with their definition.

    Returns:
      The relative RMS errors of those that ran, and why the ones that failed or are wrong must not be timed.
    """
    q, k, v = _random(settings, _CHECKED_TOKENS, count=3)
    log_decay = _log_decay(settings)
    expected = definition(*(np.asarray(x).astype(np.float64) for x in (q, k, v, log_decay)))
    errors, broken = dict[str, float](), dict[str, str]()
    for backend in settings.backends:
        if backend == "softmax":
            continue
        try:
            out = np.asarray(jax.jit(forward(backend))(q, k, v, log_decay)).astype(np.float64)
        except Exception as error:  # As in `measure`.
            broken[backend] = one_line(error)
            continue
        errors[backend] = float(np.sqrt(np.mean((out - expected) ** 2) / np.mean(expected**2)))
        if not errors[backend] <= _TOLERANCE[settings.dtype]:  # This way round NaN is wrong, too.
            broken[backend] = f"wrong, its relative RMS error is {errors[backend]:.1e}"
    return errors, broken


def definition(q: np.ndarray, k: np.ndarray, v: np.ndarray, log_decay: np.ndarray) -> np.ndarray:
    """out_t = sum over s <= t of exp(log_decay (t - s)) (q_t . k_s) v_s; q, k, v, out [B, N, H, K], log_decay [H]."""
    time = np.arange(q.shape[1])
    distance = time[:, None] - time
    weights = np.where(distance >= 0, np.exp(log_decay[:, None, None] * np.maximum(distance, 0)), 0.0)
    return np.einsum("bhts,bshv->bthv", weights * np.einsum("bthk,bshk->bhts", q, k), v)


def forward(backend: str) -> Callable[..., jax.Array]:
    """Returns the function (q, k, v, log_decay) -> out of a contender."""

    def function(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array) -> jax.Array:
        if backend == "softmax":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return linear_attention(q, k, v, log_decay, backend=backend)[0]

    return function


def forward_backward(backend: str) -> Callable[..., Any]:
    """Returns (q, k, v, log_decay, cotangent) -> out, the gradients of sum(out * cotangent) in q, k and v."""

    def function(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, cotangent: jax.Array) -> Any:
        out, pullback = jax.vjp(lambda *qkv: forward(backend)(*qkv, log_decay), q, k, v)
        # The gradients need q, k and v only: were `out` not returned, the compiler would drop the forward pass.
        return out, pullback(cotangent)

    return function


def _measure_all(settings: Settings, broken: dict[str, str]) -> Iterator[Row]:
    log_decay = _log_decay(settings)
    for num_tokens in sorted(set(settings.num_tokens)):
        q, k, v, cotangent = _random(settings, num_tokens, count=4)
        calls = (("forward", forward, ()), ("forward_backward", forward_backward, (cotangent,)))
        for backend in dict.fromkeys(settings.backends):
            for computation, function, more in calls:
                result = Measurement(skipped=broken.get(backend))
                if backend not in broken:
                    result = measure(
                        function(backend),
                        (q, k, v, log_decay, *more),
                        max_gigabytes=settings.max_gigabytes,
                        seconds=settings.seconds,
                    )
                yield Row(backend, computation, num_tokens, result)


def _random(settings: Settings, num_tokens: int, *, count: int) -> list[jax.Array]:
    shape = (settings.batch, num_tokens, settings.heads, settings.head_dim)
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, shape, settings.dtype) for key in keys]


def _log_decay(settings: Settings) -> jax.Array:
    """An operand of the compiled call, as in a model that scans over its layers: no weight is folded away."""
    return jnp.asarray(released_log_decay(settings.heads, _NUM_LAYERS)[_LAYER])


def _define_flags() -> None:
    # Not on import: flag names are global, and a test may import several commands.
    default = Settings()
    flags.DEFINE_list("backends", list(default.backends), f"What to measure, among: {', '.join(CONTENDERS)}.")
    flags.DEFINE_list("num_tokens", [str(n) for n in default.num_tokens], "Sequence lengths N.")
    flags.DEFINE_integer("batch", default.batch, "Batch B.")
    flags.DEFINE_integer("heads", default.heads, "Heads H.")
    flags.DEFINE_integer("head_dim", default.head_dim, "Features per head, K = V.")
    flags.DEFINE_string("dtype", default.dtype, f"Type of q, k and v: {', '.join(_TOLERANCE)}.")
    flags.DEFINE_float(
        "max_gigabytes",
        default.max_gigabytes,
        "What needs more memory than this, by the compiler's plan for arguments, results and temporaries, is not run.",
    )
    flags.DEFINE_float("seconds", default.seconds, "How long to repeat each call; three calls at least.")
    flags.DEFINE_string("output", None, "JSON file to write. Default: benchmarks/results/<platform>/attention.json.")


def _main() -> None:
    values = flags.FLAGS
    try:
        num_tokens = tuple(int(n) for n in values.num_tokens)
    except ValueError as error:
        raise UserError(f"num_tokens is {values.num_tokens}: give whole numbers, parted by commas.") from error
    settings = Settings(
        backends=tuple(values.backends),
        num_tokens=num_tokens,
        batch=values.batch,
        heads=values.heads,
        head_dim=values.head_dim,
        dtype=values.dtype,
        max_gigabytes=values.max_gigabytes,
        seconds=values.seconds,
    )
    output = values.output or f"benchmarks/results/{jax.default_backend()}/attention.json"
    summary = run(settings, Path(output), shlex.join(["python", "-m", "benchmarks.attention", *sys.argv[1:]]))
    print(json.dumps(summary))


if __name__ == "__main__":
    _define_flags()
    command.run(_main)
