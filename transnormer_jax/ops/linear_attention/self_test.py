"""The self-test of a kernel on this machine, which "auto" runs before it takes one.

Compilers have broken kernels like ours silently: Triton 3.4 to 3.7.0 gave wrong gradients on Hopper GPUs. A small
problem with documents, a ragged end and both states is cheap to check, once per process and kind of head.
"""

import functools
import threading
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from transnormer_jax.distributed import multihost
from transnormer_jax.ops.hardware import default_device

# Relative RMS error of a right kernel: 2e-7 in float32 and 2.5e-3 in the half precisions.
_BOUND = {jnp.dtype("float32"): 1e-4, jnp.dtype("bfloat16"): 1e-2, jnp.dtype("float16"): 1e-2}
_NUM_TOKENS = 2100  # several blocks of a TPU kernel, several parts of a GPU kernel
_NUM_HEADS = 2


@functools.cache
def passes_self_test(backend: str, key_dim: int, value_dim: int, dtype: Any) -> bool:
    """Compares outputs, states and gradients of a backend with "chunked" in float32, and warns if they differ.

    All processes of a run call this, and return the same: one that took another backend than the others would compile
    another program, and all would wait for each other.

    Args:
      backend: a name in `BACKENDS`.
      key_dim: K.
      value_dim: V.
      dtype: of q, k and v.
    """
    dtype = jnp.dtype(dtype)
    problem = _problem(backend, key_dim, value_dim, dtype)
    agreed = multihost.all_agree(not problem, name=f"self_test/{backend}/{key_dim}/{value_dim}/{dtype}")
    if not agreed:
        warnings.warn(
            f"backend {backend!r} fails its self-test on {default_device().device_kind} for K = {key_dim}, "
            f"V = {value_dim}, {dtype} ({problem or 'on another host'}): 'auto' takes a slower one.",
            stacklevel=2,
        )
    return agreed


def _problem(backend: str, key_dim: int, value_dim: int, dtype: jnp.dtype) -> str:
    """What is wrong with a backend, or nothing."""
    errors = list[Exception | float]()

    def check() -> None:
        try:
            with jax.default_device(device):
                errors.append(_relative_rms_error(backend, key_dim, value_dim, dtype))
        except Exception as error:
            errors.append(error)

    # In a thread of its own, because the caller is being traced, perhaps for a mesh. It has not the caller's device.
    device = default_device()
    thread = threading.Thread(target=check)
    thread.start()
    thread.join()
    [error] = errors
    if isinstance(error, Exception):
        return f"{type(error).__name__}: {error}"
    return "" if error <= _BOUND[dtype] else f"its relative error is {error:.1e}"


def _relative_rms_error(backend: str, key_dim: int, value_dim: int, dtype: jnp.dtype) -> float:
    """The largest relative RMS error among outputs, state and gradients."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), dtype)

    tokens = (1, _NUM_TOKENS, _NUM_HEADS)
    operands = [normal(*tokens, key_dim), normal(*tokens, key_dim), normal(*tokens, value_dim)]
    state = normal(1, _NUM_HEADS, key_dim, value_dim).astype(jnp.float32)
    cotangents = (normal(*tokens, value_dim), normal(*state.shape).astype(jnp.float32))
    actual = _results(backend, *operands, state, *cotangents)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), (*operands, state, *cotangents))
    expected = _results("chunked", *exact)
    errors = jax.tree.map(_relative_rms, actual, expected)
    return float(np.max(jax.tree.leaves(errors)))


@functools.partial(jax.jit, static_argnums=0)
def _results(backend: str, q: Any, k: Any, v: Any, state: Any, d_out: Any, d_state: Any) -> Any:
    from transnormer_jax.ops.linear_attention.api import linear_attention  # which asks for `passes_self_test`

    log_decay = jnp.linspace(-0.1, -1e-4, _NUM_HEADS)
    segment_ids = 1 + jnp.arange(_NUM_TOKENS)[None] // 1500

    def attend(q: Any, k: Any, v: Any, state: Any) -> Any:
        return linear_attention(q, k, v, log_decay, initial_state=state, segment_ids=segment_ids, backend=backend)

    outputs, pull_back = jax.vjp(attend, q, k, v, state)
    return outputs, pull_back((d_out.astype(v.dtype), d_state))


def _relative_rms(actual: jax.Array, expected: jax.Array) -> float:
    difference = np.asarray(actual, np.float64) - np.asarray(expected, np.float64)
    return float(np.sqrt(np.mean(difference**2) / np.mean(np.asarray(expected, np.float64) ** 2)))
