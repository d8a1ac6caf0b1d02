"""The registry of backends: their names, and which one "auto" takes."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.hardware import Hardware, default_device, target_hardware
from transnormer_jax.ops.linear_attention import associative_scan, chunked, recurrent
from transnormer_jax.ops.linear_attention.self_test import passes_self_test


class Problem(NamedTuple):
    """What is static about a call, by which backends accept or refuse it.

    Attributes:
      batch: B.
      num_tokens: N.
      num_heads: H, of v.
      key_dim: K.
      value_dim: V.
      dtype: of q, k and v.
      key_heads: heads of q and k; None is H.
      decay_per_token: whether log_decay is [B, N, H].
      max_segments: S if each document has its own state, else None.
      packed: whether there are segment ids.
    """

    batch: int
    num_tokens: int
    num_heads: int
    key_dim: int
    value_dim: int
    dtype: Any = jnp.float32
    key_heads: int | None = None
    decay_per_token: bool = False
    max_segments: int | None = None
    packed: bool = False

    @classmethod
    def of(
        cls,
        q: jax.Array,
        v: jax.Array,
        log_decay: jax.Array | None = None,
        max_segments: int | None = None,
        *,
        packed: bool = False,
    ) -> "Problem":
        """The problem of a call of `linear_attention` with these arguments.

        Args:
          q: queries [B, N, G, K], of the same float dtype as `v`; an array, or its shape and dtype.
          v: values [B, N, H, V], of that dtype.
          log_decay: float32, [H], or [B, N, H] for a decay per token.
          max_segments: S.
          packed: whether segment ids are given.

        Returns:
          The sizes, and what decides whether a backend can run the call.
        """
        batch, num_tokens, num_heads, value_dim = v.shape
        per_token = getattr(log_decay, "ndim", 0) == 3
        sizes = (batch, num_tokens, num_heads, q.shape[3], value_dim, q.dtype, q.shape[2])
        return cls(*sizes, per_token, max_segments, packed)


def unless_plain(problem: Problem) -> str | None:
    """Why a kernel with the plainest operator does not support the problem, or None."""
    grouped = problem.key_heads not in (None, problem.num_heads)
    if problem.decay_per_token or problem.max_segments or grouped:
        return "it takes one constant decay per head, one state per row, and as many heads of q and k as of v"
    return None


def _runs_anywhere(problem: Problem, hardware: Hardware) -> str | None:
    del problem, hardware
    return None


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to compute linear attention with a decay per head or per token.

    All functions take q, k [B, N, G, K] and v [B, N, H, V] of one dtype, where H is a multiple of G and value head h
    goes with query/key head h // (H / G); log_decay [H] or [B, N, H] float32 in [`decay.FLOOR`, 0], 0 at padding; the
    initial state, [B, H, K, V] float32, or [B, S, H, K, V] with one for every document; and `Segments` or None. At
    padding q, k and v are 0.

    Attributes:
      forward: (q, k, v, log_decay, state, segments, *, chunk_size, save) -> (out, final_state, saved): the output in
        v's dtype, the final state in the shape of the initial one, and arrays for `backward`, each with rows first, or
        None unless `save`.
      backward: (q, k, v, log_decay, state, segments, saved, d_out, d_final_state, *, decay_gradient, chunk_size) ->
        (dq, dk, dv, d_steps, d_state), with d_steps [B, N, H] the gradient of each token's log decay, or None unless
        `decay_gradient`. None: that of the chunked form, from the operands alone.
      unsupported_reason: (problem, hardware) -> None where the backend can run, else why not, as half a sentence.
      is_kernel: whether JAX and XLA see one opaque call.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    unsupported_reason: Callable[[Problem, Hardware], str | None] = _runs_anywhere
    is_kernel: bool = False


def _kernel(package: str) -> Backend:
    """A backend whose package is imported at its first use."""

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(f"transnormer_jax.ops.linear_attention.{package}")
        return getattr(module, name)(*args, **kwargs)

    names = ("forward", "backward", "unsupported_reason")
    return Backend(**{name: functools.partial(call, name) for name in names}, is_kernel=True)


def _quadratic(*operands: Any, chunk_size: int | None, **options: Any) -> Any:
    """The masked N x N matrix (q k^T * decay) v: one chunk that covers the row."""
    del chunk_size
    return chunked.forward(*operands, chunk_size=operands[0].shape[1], **options)


def _quadratic_backward(*operands: Any, chunk_size: int | None, **options: Any) -> Any:
    del chunk_size
    return chunked.backward(*operands, chunk_size=operands[0].shape[1], **options)


BACKENDS: dict[str, Backend] = {
    "recurrent": Backend(recurrent.forward),
    "quadratic": Backend(_quadratic, _quadratic_backward),
    "associative_scan": Backend(associative_scan.forward, associative_scan.backward),
    "chunked": Backend(chunked.forward, chunked.backward),
    "chunked_associative_scan": Backend(
        functools.partial(chunked.forward, parallel=True), functools.partial(chunked.backward, parallel=True)
    ),
    "pallas_tpu": _kernel("pallas_tpu"),
    "pallas_gpu": _kernel("pallas_gpu"),
    "triton": _kernel("triton"),
}
"""The ways to compute linear attention, by the names that `linear_attention(backend=...)` takes."""


# What "auto" takes for rows longer than a chunk, by platform. Behind the TPU's entry are the compiled programs in
# benchmarks/results/tpu/schedule.json: the kernel moves about the least bytes, "chunked" many times as much, and the
# kernel's schedule is shorter than that takes. No GPU has timed the other kernels yet, so they have no entry.
_AUTO = {"tpu": "pallas_tpu"}


def resolve_backend(backend: str, problem: Problem, *, chunk_size: int | None = None) -> str:
    """Returns the name of the backend that a call would use on the target hardware.

    "auto" takes one masked matrix where the row fits in one chunk (a decoding step is such a row). Else it takes the
    kernel that has been measured on this platform, once it has passed its self-test on this machine, else "chunked".

    Args:
      backend: a name in `BACKENDS`, or "auto".
      problem: what is static about the call.
      chunk_size: tokens per chunk, or None.

    Raises:
      UserError: the name is unknown, the backend cannot run here, or the chunk size is not positive.
    """
    if chunk_size is not None and chunk_size < 1:
        raise UserError(f"chunk_size is {chunk_size}: give a positive number of tokens, or None for the default.")
    hardware = target_hardware()
    if backend == "auto":
        if problem.num_tokens <= (chunk_size or chunked.default_chunk_size(problem.key_dim, problem.value_dim)):
            return "quadratic"
        return _measured_kernel(problem, hardware) or "chunked"
    if backend not in BACKENDS:
        raise UserError(f"unknown backend {backend!r}: {did_you_mean(backend, ['auto', *BACKENDS])}")
    reason = BACKENDS[backend].unsupported_reason(problem, hardware)
    if reason is not None:
        raise UserError(f"backend {backend!r} cannot be used here: {reason}; take backend='auto'.")
    return backend


def _measured_kernel(problem: Problem, hardware: Hardware) -> str | None:
    """The kernel for the platform, if it supports the problem and passes its self-test on this machine."""
    kernel = _AUTO.get(hardware.platform)
    if kernel is None or BACKENDS[kernel].unsupported_reason(problem, hardware) is not None:
        return None
    if hardware.kind != default_device().device_kind:  # compiled for another machine: nothing to run the test on
        return kernel
    return kernel if passes_self_test(kernel, problem) else None
