"""The one registry of backends: their names, and which one "auto" takes."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.hardware import Hardware, default_device, target_hardware
from transnormer_jax.ops.linear_attention.associative_scan import associative_scan
from transnormer_jax.ops.linear_attention.chunked import chunked, default_chunk_size, quadratic
from transnormer_jax.ops.linear_attention.recurrent import recurrent
from transnormer_jax.ops.linear_attention.self_test import passes_self_test


class Problem(NamedTuple):
    """The sizes of a call, by which backends accept or refuse it.

    Attributes:
      batch: B.
      num_tokens: N.
      num_heads: H.
      key_dim: K.
      value_dim: V.
      dtype: of q, k and v.
    """

    batch: int
    num_tokens: int
    num_heads: int
    key_dim: int
    value_dim: int
    dtype: Any = jnp.float32

    @classmethod
    def of(cls, q: jax.Array, v: jax.Array) -> "Problem":
        """The sizes of `q` [B, N, H, K] and `v` [B, N, H, V], which have one float dtype; arrays or shapes."""
        b, n, h, k = q.shape
        return cls(b, n, h, k, v.shape[3], q.dtype)


def _runs_anywhere(problem: Problem, hardware: Hardware) -> str | None:
    del problem, hardware
    return None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to compute the primitive; `primitive.py` says what that is.

    Attributes:
      attend: (q, k, v, log_decay, state, segments, *, reverse, chunk_size) -> (out, state).
      refusal: (problem, hardware) -> None where the backend can run, else why not, as half a sentence.
      attend_and_save: as `attend`, and states that `gradients` takes, [B, blocks, K, H * V]: (out, state, saved).
      gradients: (q, k, v, log_decay, state, segments, saved, d_out, d_state, *, reverse, chunk_size)
        -> (dq, dk, dv, d_state), fused. None: three calls of `attend`.
      is_kernel: whether XLA sees one opaque call, which it cannot divide among devices.
    """

    attend: Callable[..., Any]
    refusal: Callable[[Problem, Hardware], str | None] = _runs_anywhere
    attend_and_save: Callable[..., Any] | None = None
    gradients: Callable[..., Any] | None = None
    is_kernel: bool = False


def _kernel(package: str, *functions: str) -> Backend:
    """A backend whose package is imported at its first use."""

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(f"transnormer_jax.ops.linear_attention.{package}")
        return getattr(module, name)(*args, **kwargs)

    parts = {name: functools.partial(call, name) for name in ("attend", "refusal", *functions)}
    return Backend(**parts, is_kernel=True)


BACKENDS: dict[str, Backend] = {
    "recurrent": Backend(recurrent),
    "quadratic": Backend(quadratic),
    "associative_scan": Backend(associative_scan),
    "chunked": Backend(chunked),
    "chunked_associative_scan": Backend(functools.partial(chunked, parallel_carry=True)),
    "pallas_tpu": _kernel("pallas_tpu", "attend_and_save", "gradients"),
    "pallas_gpu": _kernel("pallas_gpu", "gradients"),
    "triton": _kernel("triton", "gradients"),
}
"""The ways to compute linear attention, by the names that `linear_attention(backend=...)` takes."""


# What "auto" takes for rows longer than a chunk, by platform. Behind the TPU's entry are the compiled programs in
# benchmarks/results/tpu: with heads of 32 to 192 features in bfloat16, "chunked" moves 12 to 28 times the least bytes,
# and the kernel's schedule is shorter than these take. No GPU has timed the other kernels yet, so they have no entry.
_AUTO = {"tpu": "pallas_tpu"}


def resolve_backend(backend: str, problem: Problem, *, chunk_size: int | None = None) -> str:
    """Returns the name of the backend that a call would use on the target hardware.

    "auto" takes one masked matrix where the row fits in one chunk (a decoding step is such a row). Else it takes the
    kernel that has been measured on this platform, once it has been checked on this machine (see `self_test.py`), else
    "chunked".

    Args:
      backend: a name in `BACKENDS`, or "auto".
      problem: the sizes of the call.
      chunk_size: tokens per chunk, or None.

    Raises:
      UserError: the name is unknown, the backend cannot run here, or the chunk size is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}: give a positive number of tokens, or None for the default.")
    hardware = target_hardware()
    if backend == "auto":
        if problem.num_tokens <= (chunk_size or default_chunk_size(problem.key_dim, problem.value_dim)):
            return "quadratic"
        return _measured_kernel(problem, hardware) or "chunked"
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: {did_you_mean(backend, ['auto', *BACKENDS])}")
    refusal = BACKENDS[backend].refusal(problem, hardware)
    if refusal is not None:
        raise UserError(f"backend {backend!r} cannot be used here: {refusal}; take backend='auto'.")
    return backend


def _measured_kernel(problem: Problem, hardware: Hardware) -> str | None:
    """The kernel for the platform, if it takes the problem and is right on this machine."""
    kernel = _AUTO.get(hardware.platform)
    if kernel is None or BACKENDS[kernel].refusal(problem, hardware) is not None:
        return None
    if hardware.kind != default_device().device_kind:  # compiled for a machine that is not at hand: nothing to check on
        return kernel
    return kernel if passes_self_test(kernel, problem.key_dim, problem.value_dim, problem.dtype) else None
