"""The registry of backends: their names, and which one "auto" takes."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.hardware import Hardware, default_device, target_hardware
from transnormer_jax.ops.linear_attention import associative_scan, chunked, recurrent
from transnormer_jax.ops.linear_attention.operands import Operands, Problem
from transnormer_jax.ops.linear_attention.self_test import passes_self_test


@dataclasses.dataclass(frozen=True)
class Backend:
    """One way to compute linear attention with a decay per head or per token.

    Attributes:
      forward: (operands, *, chunk_size, save) -> (out, final_state, saved): the output in v's dtype, the final state in
        the shape of the initial one, and arrays for `backward`, each with rows first, or None unless `save`.
      backward: (operands, saved, d_out, d_final_state, *, decay_gradient, chunk_size) -> `Gradients`, that of the
        decay only if `decay_gradient`. None: those of the chunked form, from the operands alone.
      unsupported_reason: (problem, hardware) -> None where the backend can run, else why not, as half a sentence.
      is_kernel: whether JAX and XLA see one opaque call.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None = None
    unsupported_reason: Callable[[Problem, Hardware], str | None] = lambda problem, hardware: None
    is_kernel: bool = False


def _kernel(package: str) -> Backend:
    """A backend whose package is imported at its first use."""

    def call(name: str, *args: Any, **kwargs: Any) -> Any:
        module = importlib.import_module(f"transnormer_jax.ops.linear_attention.{package}")
        return getattr(module, name)(*args, **kwargs)

    names = ("forward", "backward", "unsupported_reason")
    return Backend(**{name: functools.partial(call, name) for name in names}, is_kernel=True)


def _quadratic(function: Callable[..., Any], operands: Operands, *rest: Any, **options: Any) -> Any:
    """The masked N x N matrix (q k^T * decay) v: one chunk that covers the row."""
    return function(operands, *rest, **options | {"chunk_size": operands.q.shape[1]})


BACKENDS: dict[str, Backend] = {
    "recurrent": Backend(recurrent.forward),
    "quadratic": Backend(
        functools.partial(_quadratic, chunked.forward), functools.partial(_quadratic, chunked.backward)
    ),
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
# benchmarks/results/tpu: with heads of 32 to 192 features in bfloat16, "chunked" moves 12 to 28 times the least bytes,
# and the kernel's schedule is shorter than these take. No GPU has timed the other kernels yet, so they have no entry.
_AUTO = {"tpu": "pallas_tpu"}


def resolve_backend(backend: str, problem: Problem, *, chunk_size: int | None = None) -> str:
    """Returns the name of the backend that a call would use on the target hardware.

    "auto" takes "quadratic" where the row fits in one chunk, as a decoding step does. Else it takes the kernel that has
    been measured on this platform, once it has passed its self-test on this machine, else "chunked".

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
