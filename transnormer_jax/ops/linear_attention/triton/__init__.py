"""Linear attention on NVIDIA GPUs from Ampere on, by Triton kernels through jax-triton.

One kernel (`kernel.py`) reads and writes each token once, in place, in either direction of time. Where there are too
few heads to fill the GPU, rows are cut into parts (`parts.py`). The gradient is three calls, or two where the heads are
small (`gradient.py`).
"""

import jax

from transnormer_jax.ops.hardware import Hardware
from transnormer_jax.ops.linear_attention.operands import Problem, unless_plain
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
        return f"it compiles only for the device of this machine, a {here}, not for a {hardware.kind}"
    if compute_capability(hardware) < _AMPERE:
        return f"it needs an NVIDIA GPU of compute capability 8.0 or more, and this is a {here}"
    if max(problem.key_dim, problem.value_dim) > MAX_DIM:
        return f"it takes K and V up to {MAX_DIM}, and they are {problem.key_dim} and {problem.value_dim}"
    return unless_plain(problem) or what_is_missing(hardware)
