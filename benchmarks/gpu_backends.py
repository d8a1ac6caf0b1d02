"""The process of `benchmarks.gpu` that runs JAX: backends of `linear_attention`; without rows, the speed of a copy.

How a call of 10 to 1000 microseconds is timed. One program makes n calls, each on fresh operands, and each from the
state that the call before returned (the gradient of that state, where gradients are taken): no call can start early or
be merged with another, and none can be dropped, because all results are returned. The program is run many times; the
time of a call is the median wall time less that of a program that does nothing with the same operands, over n.
"""

import functools
import json
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.environment import describe_environment
from benchmarks.gpu_shapes import Shape
from benchmarks.gpu_worker import Row, Skip, Task, plan, serve, verify
from benchmarks.measure import one_line, time_calls, too_large
from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention import Problem, linear_attention, resolve_backend

# What XLA compiles takes long to compile, and is slow enough to be measured in few calls.
_MAX_CALLS = {"pallas_gpu": 32, "triton": 32}
_MAX_CALLS_XLA = 4
_MIN_REPEATS = 5
_COPIES = 8


def describe(task: Task) -> dict[str, Any]:
    """Returns the environment, and the speed of a copy: bytes read and written per second, by one large kernel."""
    environment = describe_environment()
    size = task["copy_bytes"][environment["platform"] == "gpu"] // 2
    x = jax.random.normal(jax.random.key(0), (size,), jnp.bfloat16)
    negate = jax.jit(jnp.negative)

    def copies() -> jax.Array:
        return functools.reduce(lambda y, _: negate(y), range(_COPIES), x)

    median = statistics.median(time_calls(copies, seconds=task["seconds"], at_least=_MIN_REPEATS))
    return {"environment": environment, "copy_bytes_per_second": _COPIES * 2 * x.nbytes / median}


def measure_row(task: Task, contender: str, shape: Shape, computation: str) -> Row:
    """Checks one backend at one shape against float64, and times it.

    Raises:
      Skip: the backend refuses, does not fit, or is wrong; or it is "auto", which is another one.
    """
    backend = _resolve(contender, shape)
    if contender == "auto":
        raise Skip(f"it takes {backend}")
    num_calls, num_sets = plan(task, shape, computation, max_calls=_MAX_CALLS.get(backend, _MAX_CALLS_XLA))
    sets = [_random(shape, seed, 3 if computation == "forward" else 4) for seed in range(num_sets)]
    state = jnp.zeros((shape.batch, shape.heads, shape.key_dim, shape.value_dim))
    ids = None if shape.segment_ids is None else jnp.asarray(shape.segment_ids)
    operands = (sets, state, jnp.asarray(shape.log_decay), ids)

    compiled = jax.jit(chain(backend, computation, num_calls)).lower(*operands).compile()
    reason = too_large(compiled, task["max_gigabytes"])
    if reason is not None:
        raise Skip(reason)

    # The first call of the chain starts from no state, as the truth does.
    errors = verify(task, shape, sets[0], compiled(*operands)[0][0], one_head=_one_head, finite=_finite)
    # The last state alone is waited for: a device works in order.
    times = time_calls(lambda: compiled(*operands)[1], seconds=task["seconds"], at_least=_MIN_REPEATS)
    nothing = time_calls(lambda: _nothing(*operands), seconds=task["seconds"] / 4, at_least=_MIN_REPEATS)
    launch = statistics.median(nothing)
    milliseconds = [1e3 * (t - launch) / num_calls for t in times]
    return {
        "median_ms": statistics.median(milliseconds),
        "min_ms": min(milliseconds),
        "launch_ms": 1e3 * launch,
        "calls": num_calls,
        "sets": num_sets,
        "repeats": len(times),
        "relative_rms_error": errors,
        "compiler_temp_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def chain(backend: str, computation: str, num_calls: int) -> Callable[..., Any]:
    """Returns the program (sets, state, log_decay, segment ids) -> (the results of every call, the last state)."""

    @jax.jit  # Traced and lowered once, however often it is called.
    def call(operands: list[jax.Array], state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> Any:
        def forward(q: jax.Array, k: jax.Array, v: jax.Array, state: jax.Array) -> Any:
            return linear_attention(q, k, v, log_decay, initial_state=state, segment_ids=ids, backend=backend)

        q, k, v = operands[:3]
        if computation == "forward":
            out, state = forward(q, k, v, state)
            return {"out": out}, state
        (out, end), pull_back = jax.vjp(forward, q, k, v, state)
        dq, dk, dv, d_state = pull_back((operands[3], jnp.zeros_like(end)))
        return {"out": out, "dq": dq, "dk": dk, "dv": dv}, d_state

    def program(sets: list[list[jax.Array]], state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> Any:
        results = []
        for i in range(num_calls):
            result, state = call(sets[i % len(sets)], state, log_decay, ids)
            results.append(result)
        return results, state

    return program


@functools.partial(jax.jit, keep_unused=True)
def _nothing(sets: Any, state: jax.Array, log_decay: jax.Array, ids: jax.Array | None) -> jax.Array:
    return state[0, 0, 0, 0] + 1


def _resolve(contender: str, shape: Shape) -> str:
    sizes = (shape.batch, shape.num_tokens, shape.heads, shape.key_dim, shape.value_dim)
    try:
        return resolve_backend(contender, Problem(*sizes, jnp.dtype(shape.dtype)))
    except UserError as error:
        raise Skip(str(error)) from error
    except ImportError as error:
        raise Skip(one_line(error)) from error


def _random(shape: Shape, seed: int, count: int) -> list[jax.Array]:
    """The first `count` of q [B, N, H, K], k [B, N, H, K], v [B, N, H, V] and d_out [B, N, H, V]."""
    features = (shape.key_dim, shape.key_dim, shape.value_dim, shape.value_dim)[:count]
    keys = jax.random.split(jax.random.key(seed), count)
    return [
        jax.random.normal(key, (shape.batch, shape.num_tokens, shape.heads, size), shape.dtype)
        for key, size in zip(keys, features, strict=True)
    ]


def _one_head(x: jax.Array, row: int, head: int) -> np.ndarray:
    return np.asarray(x[row, :, head]).astype(np.float32)


def _finite(x: jax.Array) -> bool:
    return bool(jnp.isfinite(x).all())


if __name__ == "__main__":
    if json.loads(sys.argv[1])["rows"]:
        serve(measure_row)
    else:
        print(json.dumps(describe(json.loads(sys.argv[1]))), flush=True)
