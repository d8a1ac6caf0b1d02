"""Linear attention on NVIDIA GPUs from Ampere on, by Triton kernels through jax-triton.

One kernel (`kernel.py`) reads and writes each token once, in place, in either direction of time. Where there are too
few heads to fill the GPU, rows are cut into parts (`parts.py`). The gradient is three calls, or two where the heads are
small (`gradient.py`).
"""

import jax

from transnormer_jax.ops.hardware import Hardware
from transnormer_jax.ops.linear_attention.backends import Problem
from transnormer_jax.ops.linear_attention.triton.backward import backward
from transnormer_jax.ops.linear_attention.triton.blocks import MAX_DIM
from transnormer_jax.ops.linear_attention.triton.forward import forward
from transnormer_jax.ops.linear_attention.triton.launch import compute_capability, what_is_missing

__all__ = ["backward", "forward", "unsupported_reason"]

_AMPERE = 80


def unsupported_reason(problem: Problem, hardware: Hardware) -> str | None:
    """Why this backend cannot run the problem on the hardware, as half a sentence; None where it can."""
    here = jax.devices()[0].device_kind
    if hardware.kind != here:
        return f"it compiles for the GPU at hand, and this is a {here}, not a {hardware.kind}"
    if compute_capability(hardware) < _AMPERE:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, and this is a {here}"
    if max(problem.key_dim, problem.value_dim) > MAX_DIM:
        return f"it takes K and V up to {MAX_DIM}, and they are {problem.key_dim} and {problem.value_dim}"
    if problem.decay_per_token or problem.max_segments or (problem.key_heads or problem.num_heads) != problem.num_heads:
        return "it takes one constant decay per head, one state per row, and as many heads of q and k as of v"
    return what_is_missing(hardware)
