"""Linear attention on TPU: a fused forward and a fused backward kernel in Pallas."""

import jax.numpy as jnp

from transnormer_jax.ops.hardware import Hardware, interpret_mode
from transnormer_jax.ops.linear_attention.operands import Problem
from transnormer_jax.ops.linear_attention.pallas_tpu.backward import backward
from transnormer_jax.ops.linear_attention.pallas_tpu.forward import forward
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import choose_layout

__all__ = ["backward", "forward", "unsupported_reason"]


def unsupported_reason(problem: Problem, hardware: Hardware) -> str | None:
    """Why the kernels cannot run here, or None."""
    if hardware.platform != "tpu" and not interpret_mode():
        return f"it needs a TPU, and this is a {hardware.platform}"
    if problem.dtype == jnp.float16:
        return "a TPU computes in bfloat16 and float32, not in float16"
    layout = choose_layout(problem, hardware, chunk_size=None)
    needed, available = (size / 2**20 for size in (layout.vmem_needed(), layout.vmem_bytes))
    if needed > available:
        heads = f"{layout.heads} heads of {problem.key_dim} x {problem.value_dim}"
        return f"{heads} need {needed:.0f} MiB of vector memory, and a kernel may use {available:.0f} MiB"
    return None
