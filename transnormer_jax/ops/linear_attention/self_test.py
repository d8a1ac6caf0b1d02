"""The self-test of a kernel on this machine, which "auto" runs before it takes one.

Compilers have broken kernels like ours silently: Triton 3.4 to 3.7.0 gave wrong gradients on Hopper GPUs. A row of
several blocks with the heads, features, documents and decay of the call is cheap to check, once per process.
"""

import concurrent.futures
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transnormer_jax.distributed import multihost
from transnormer_jax.ops.hardware import default_device

# Relative RMS error of a right kernel: 2e-7 in float32 and 2.5e-3 in the half precisions.
_BOUND = {jnp.dtype("float32"): 1e-4, jnp.dtype("bfloat16"): 1e-2, jnp.dtype("float16"): 1e-2}
_NUM_TOKENS = 2100  # several blocks of a TPU kernel, several shards of a GPU kernel, and a ragged end


def passes_self_test(backend: str, problem: Any) -> bool:
    """Compares outputs, states and gradients of a backend with "chunked" in float32, and warns if they differ.

    The test has one row of another length, and otherwise the problem of the call. All processes of a run must call
    this, and get the same answer: a process with another backend would compile another program, and the others would
    wait for it.
    """
    return _passes(backend, problem._replace(batch=1, num_tokens=_NUM_TOKENS, dtype=jnp.dtype(problem.dtype)))


@functools.cache
def _passes(backend: str, problem: Any) -> bool:
    error = _error(backend, problem)
    name = "/".join(map(str, (backend, *problem)))
    agreed = multihost.all_agree(not error, name=f"self_test/{name}")
    if not agreed:
        warnings.warn(
            f"backend {backend!r} fails its self-test on {default_device().device_kind} for {problem.num_heads} heads, "
            f"K = {problem.key_dim}, V = {problem.value_dim}, {problem.dtype} ({error or 'on another host'}): 'auto' "
            "takes a slower one.",
            stacklevel=3,
        )
    return agreed


def _error(backend: str, problem: Any) -> str:
    """What is wrong with a backend, or nothing."""
    device = default_device()

    def check() -> float:
        with jax.default_device(device):
            return _relative_rms_error(backend, problem)

    # In its own thread, because the caller is being traced, perhaps for a mesh.
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            error = thread.submit(check).result()
        except Exception as exception:
            return f"{type(exception).__name__}: {exception}"
    return "" if error <= _BOUND[problem.dtype] else f"its relative error is {error:.1e}"


def _relative_rms_error(backend: str, problem: Any) -> float:
    """The largest relative RMS error among outputs, state and gradients."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), problem.dtype)

    rows = (1, _NUM_TOKENS)
    qk, vs = (problem.key_heads or problem.num_heads, problem.key_dim), (problem.num_heads, problem.value_dim)
    documents = () if problem.max_segments is None else (problem.max_segments,)
    state = normal(1, *documents, problem.num_heads, problem.key_dim, problem.value_dim).astype(jnp.float32)
    operands = (normal(*rows, *qk), normal(*rows, *qk), normal(*rows, *vs), state)
    cotangents = (normal(*rows, *vs), normal(*state.shape).astype(jnp.float32))
    actual = _results(backend, problem, *operands, *cotangents)
    expected = _results("chunked", problem, *jax.tree.map(lambda x: x.astype(jnp.float32), (*operands, *cotangents)))
    return float(np.max(jax.tree.leaves(jax.tree.map(_relative_rms, actual, expected))))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _results(backend: str, problem: Any, q: Any, k: Any, v: Any, state: Any, d_out: Any, d_state: Any) -> Any:
    from transnormer_jax.ops.linear_attention.api import linear_attention  # which asks for `passes_self_test`

    log_decay = jnp.linspace(-0.1, -1e-4, problem.num_heads)
    if problem.decay_per_token:
        log_decay = log_decay * (1 + jnp.sin(jnp.arange(_NUM_TOKENS)))[None, :, None]
    options: dict[str, Any] = {"max_segments": problem.max_segments, "backend": backend}
    if problem.packed:
        length = 1500 if problem.max_segments is None else -(-_NUM_TOKENS // problem.max_segments)
        options["segment_ids"] = 1 + jnp.arange(_NUM_TOKENS)[None] // length

    def attend(q: Any, k: Any, v: Any, state: Any, log_decay: Any = log_decay) -> Any:
        return linear_attention(q, k, v, log_decay, initial_state=state, **options)

    # The gradient of a constant decay is a sum that cancels, too noisy in half precision to tell right from wrong.
    operands = (q, k, v, state, log_decay) if problem.decay_per_token else (q, k, v, state)
    outputs, pull_back = jax.vjp(attend, *operands)
    return outputs, pull_back((d_out.astype(v.dtype), d_state))


def _relative_rms(actual: jax.Array, expected: jax.Array) -> float:
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.asarray(expected, np.float64) ** 2)))
