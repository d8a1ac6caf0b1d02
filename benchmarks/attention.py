"""Linear attention as an associative scan over tokens, against its other formulations and softmax attention.

For every number of tokens, every backend and both computations (forward; forward and backward, that is the gradients
of q, k and v, and of the decay where it is one per token) this records the wall time of a compiled call and its
temporary memory. The memory is what the compiler plans (`memory_analysis().temp_size_in_bytes`), not a measured peak.
"softmax" is causal `jax.nn.dot_product_attention` as XLA computes it, with the N x N matrix; "jla" is the chunked
`simple_gla` of the package jax-linear-attention, where that is installed.

What does not fit, fails or is wrong is not timed, and the record says why.

    python -m benchmarks.attention
    python -m benchmarks.attention --backends=chunked,jla --decay=per_token
    python -m benchmarks.attention --batch=4 --heads=16 --head_dim=128 --dtype=bfloat16 --max_gigabytes=60
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import Measurement, Panel, Record, check_known, check_positive, main, measure, one_line
from benchmarks.definition import definition, relative_rms
from transnormer_jax.ops.decay import released_log_decay
from transnormer_jax.ops.linear_attention import linear_attention

# Kernels are measured by benchmarks.gpu, on the hardware that they are for.
CONTENDERS = ("recurrent", "quadratic", "associative_scan", "chunked", "chunked_associative_scan", "softmax")
PEERS = ("jla",)
COMPUTATIONS = ("forward", "forward_backward")
_DECAYS = ("per_head", "per_token")

# The relative RMS error up to which a backend computes the same thing: rounding alone stays well below.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 1e-2}
_CHECKED_TOKENS = 200  # several chunks, the last one ragged
_LAYER, _NUM_LAYERS = 12, 24  # whose decay is taken

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to measure.

    Attributes:
      backends: among recurrent, quadratic, associative_scan, chunked, chunked_associative_scan, softmax, jla.
      num_tokens: lengths N.
      batch: rows B.
      heads: heads H.
      head_dim: features per head, K = V.
      dtype: of q, k and v: float32, bfloat16 or float16.
      decay: per_head, the released checkpoints' constants, or per_token, log-uniform between 1e-3 and 1.
      max_gigabytes: what the compiler plans more memory for is not run; 10^9 bytes.
      seconds: how long each call is repeated.
    """

    backends: tuple[str, ...] = CONTENDERS
    num_tokens: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16384)
    batch: int = 1
    heads: int = 8
    head_dim: int = 64
    dtype: str = "float32"
    decay: str = "per_head"
    max_gigabytes: float = 5.0
    seconds: float = 0.5

    def __post_init__(self):
        check_positive(self)
        check_known("backends", self.backends, CONTENDERS + PEERS)
        check_known("decay", [self.decay], _DECAYS)
        check_known("dtype", [self.dtype], _TOLERANCE)


def run(settings: Settings, record: Record) -> dict[str, Any]:
    """Measures, prints and records as it goes, and returns the summary."""
    errors, broken = check_backends(settings)
    about = {
        "log_decay": _log_decay(settings, 1).tolist() if settings.decay == "per_head" else settings.decay,
        "check": {"num_tokens": _CHECKED_TOKENS, "relative_rms_error": errors},
    }
    rows = list[Row]()
    for num_tokens in sorted(set(settings.num_tokens)):
        log_decay = _log_decay(settings, num_tokens)
        q, k, v, cotangent = _random(settings, num_tokens, count=4)
        calls = (("forward", forward, ()), ("forward_backward", forward_backward, (cotangent,)))
        for backend in dict.fromkeys(settings.backends):
            for computation, function, more in calls:
                result = Measurement(skipped=broken.get(backend))
                if backend not in broken:
                    limits = {"max_gigabytes": settings.max_gigabytes, "seconds": settings.seconds}
                    result = measure(function(backend), (q, k, v, log_decay, *more), **limits)
                print(f"{num_tokens:7d} {backend:<25} {computation:<17} {result}", flush=True)
                row = {"backend": backend, "computation": computation, "num_tokens": num_tokens}
                rows.append(row | result.known())
                record.write(**about, rows=rows, summary=summarize(rows))
    shape = f"B = {settings.batch}, H = {settings.heads}, K = V = {settings.head_dim}, {settings.dtype}"
    lines = [
        Panel(
            computation.replace("_", " and "), ylabel, {name: points(rows, name, computation, field) for name in names}
        )
        for names in [dict.fromkeys(settings.backends)]
        for computation, field, ylabel in (
            ("forward", "median_ms", "time [ms]"),
            ("forward_backward", "median_ms", "time [ms]"),
            ("forward_backward", "compiler_temp_bytes", "temporary memory by the compiler's plan [B]"),
        )
    ]
    record.plot(lines, title=f"Causal attention; {shape}", xlabel="tokens N")
    return summarize(rows)


def check_backends(settings: Settings) -> tuple[dict[str, float], dict[str, str]]:
    """Compares the linear backends with their definition.

    Returns:
      The relative RMS errors of those that ran, and why the ones that failed or are wrong must not be timed.
    """
    q, k, v = _random(settings, _CHECKED_TOKENS, count=3)
    log_decay = _log_decay(settings, _CHECKED_TOKENS)
    expected = definition(*(np.asarray(x).astype(np.float64) for x in (q, k, v, log_decay)))
    errors, broken = dict[str, float](), dict[str, str]()
    for backend in settings.backends:
        if backend == "softmax":
            continue
        try:
            out = np.asarray(jax.jit(forward(backend))(q, k, v, log_decay))
        except Exception as error:  # As in `measure`.
            broken[backend] = one_line(error)
            continue
        errors[backend] = relative_rms(out, expected)
        if not errors[backend] <= _TOLERANCE[settings.dtype]:  # This way round NaN is wrong, too.
            broken[backend] = f"wrong, its relative RMS error is {errors[backend]:.1e}"
    return errors, broken


def forward(backend: str) -> Callable[..., jax.Array]:
    """Returns the function (q, k, v, log_decay) -> out of a contender."""

    def function(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array) -> jax.Array:
        if backend == "softmax":
            return jax.nn.dot_product_attention(q, k, v, is_causal=True)
        if backend == "jla":
            from jla.ops.chunked import simple_gla  # an optional package

            return simple_gla(q, k, v, jnp.broadcast_to(log_decay, q.shape[:3]), scale=1.0)[0]
        return linear_attention(q, k, v, log_decay, backend=backend)[0]

    return function


def forward_backward(backend: str) -> Callable[..., Any]:
    """Returns (q, k, v, log_decay, cotangent) -> out, and the gradients of sum(out * cotangent).

    They are those of q, k and v, and of the decay where it is one per token.
    """

    def function(q: jax.Array, k: jax.Array, v: jax.Array, log_decay: jax.Array, cotangent: jax.Array) -> Any:
        if log_decay.ndim == 3:
            out, pullback = jax.vjp(forward(backend), q, k, v, log_decay)
        else:
            out, pullback = jax.vjp(lambda *qkv: forward(backend)(*qkv, log_decay), q, k, v)
        # The gradients need the operands only: were `out` not returned, the compiler would drop the forward pass.
        return out, pullback(cotangent)

    return function


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each computation, ratios of median times to `chunked` at the largest N at which both ran."""
    summary: dict[str, Any] = {computation: {} for computation in COMPUTATIONS}
    for computation, found in summary.items():
        chunked = dict(points(rows, "chunked", computation, "median_ms"))
        for name in dict.fromkeys(row["backend"] for row in rows if row["backend"] != "chunked"):
            times = dict(points(rows, name, computation, "median_ms"))
            if common := times.keys() & chunked.keys():
                n = max(common)
                found[f"time_{name}_over_chunked"] = {"num_tokens": n, "ratio": round(times[n] / chunked[n], 2)}
    return summary


def points(rows: Sequence[Row], backend: str, computation: str, field: str) -> list[tuple[int, float]]:
    """(N, the field) where it is known and has a logarithm. What was not run has no time, but may have its memory."""
    key = (backend, computation)
    return [
        (row["num_tokens"], row[field])
        for row in rows
        if (row["backend"], row["computation"]) == key and row.get(field)
    ]


def _random(settings: Settings, num_tokens: int, *, count: int) -> list[jax.Array]:
    shape = (settings.batch, num_tokens, settings.heads, settings.head_dim)
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, shape, settings.dtype) for key in keys]


def _log_decay(settings: Settings, num_tokens: int) -> jax.Array:
    """An operand of the compiled call, as in a model that scans over its layers: no weight is folded away."""
    if settings.decay == "per_token":
        shape = (settings.batch, num_tokens, settings.heads)
        return -jnp.exp(jax.random.uniform(jax.random.key(1), shape, minval=math.log(1e-3), maxval=0))
    return jnp.asarray(released_log_decay(settings.heads, _NUM_LAYERS)[_LAYER])


if __name__ == "__main__":
    main("attention", Settings(), run)
