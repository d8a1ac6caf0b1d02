"""Linear attention on TPU: a fused forward and a fused backward kernel in Pallas."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import Hardware, interpret_mode, target_hardware
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, Problem
from transnormer_jax.ops.linear_attention.pallas_tpu.backward import backward_kernel
from transnormer_jax.ops.linear_attention.pallas_tpu.documents import document_borders
from transnormer_jax.ops.linear_attention.pallas_tpu.forward import forward_kernel
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout, choose_layout
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import decay_operands
from transnormer_jax.ops.linear_attention.segments import find_segments


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


def forward(
    operands: Operands,
    *,
    chunk_size: int | None,
    save: bool,
) -> tuple[Array, Array, Any]:
    """Linear attention.

    Key heads that several heads share are read where they are if K is a multiple of 128, else they are repeated first.
    What is saved are the states before each block, [B, blocks, K, H * V], and the final state; nothing with a state
    per document.
    """
    per_document = operands.problem.max_segments is not None
    if per_document and operands.segments is None:
        operands = operands._replace(segments=find_segments(jnp.ones(operands.v.shape[:2], jnp.int32)))
    layout, (q, k, v, log_decay, state, segments) = _layout(operands, chunk_size)
    decay = decay_operands(layout, log_decay, segments)
    borders = document_borders(layout, segments) if per_document and segments is not None else []
    save = save and not per_document
    out, final, *saved = forward_kernel(
        layout, _flat(q), _flat(k), _flat(v), decay, _flat_state(state), borders, save=save
    )
    final = _state(final, state)
    return out.reshape(v.shape), final, (saved[0], final) if save else None


def backward(
    operands: Operands,
    saved: tuple[Array, Array],
    d_out: Float[Array, "B N H V"],
    d_final: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    chunk_size: int | None,
) -> Gradients:
    """All gradients; not with a state per document."""
    shape = *operands.q.shape[:3], -1, operands.q.shape[3]
    states, final = saved
    layout, (q, k, v, log_decay, _, segments) = _layout(operands, chunk_size)
    decay = decay_operands(layout, log_decay, segments)
    arrays = _flat(q), _flat(k), _flat(v), decay, states, _flat(d_out), _flat_state(d_final)
    dq, dk, dv, d_state, *rows = backward_kernel(layout, *arrays, decay_gradient=decay_gradient)
    d_steps = _d_steps(layout, rows[0], jnp.sum(final * d_final, axis=(2, 3))) if decay_gradient else None
    if dq.shape[2] > shape[2] * shape[4]:  # of repeated heads
        dq, dk = (x.reshape(shape).astype(jnp.float32).sum(3).astype(x.dtype) for x in (dq, dk))
    dq, dk = (x.reshape(*shape[:3], shape[4]) for x in (dq, dk))
    return Gradients(dq, dk, dv.reshape(v.shape), d_steps, _state(d_state, d_final))


def _layout(operands: Operands, chunk_size: int | None) -> tuple[Layout, Operands]:
    """Key heads whose lanes do not fill registers are repeated for the heads that share them."""
    q, k, v = operands[:3]
    if q.shape[3] % LANES:
        q, k = (jnp.repeat(x, v.shape[2] // q.shape[2], axis=2) for x in (q, k))
        operands = operands._replace(q=q, k=k)
    return choose_layout(operands.problem, target_hardware(), chunk_size), operands


def _d_steps(layout: Layout, rows: Float[Array, "B G R N"], last_border: Float[Array, "B H"]) -> Array:
    """The gradient of each token's log decay [B, N, H]: that of every later c_t in its chunk, and of the border."""
    batch, heads = rows.shape[0], layout.heads
    rows = rows[:, :, : 2 * layout.heads].reshape(
        batch, -1, 2, heads, layout.padded_tokens // layout.chunk, layout.chunk
    )
    dc, borders = rows[:, :, 0], rows[:, :, 1, ..., 0]
    borders = jnp.concatenate([borders[..., 1:], last_border.reshape(*borders.shape[:-1], 1)], axis=-1)
    upper = jnp.triu(jnp.ones((layout.chunk, layout.chunk)))
    steps = jnp.einsum("ts,bghms->bghmt", upper, dc, precision=jax.lax.Precision.HIGHEST) + borders[..., None]
    return steps.reshape(batch, layout.problem.num_heads, -1).swapaxes(1, 2)[:, : layout.problem.num_tokens]


def _flat(x: Array) -> Array:
    """[B, N, H, K] -> [B, N, H * K], which is free where a projection made x."""
    return x.reshape(*x.shape[:2], -1)


def _flat_state(state: Array) -> Array:
    """[B, ..., H, K, V] -> [B, ..., K, H * V]: the lanes of v."""
    state = jnp.moveaxis(state, -3, -2)
    return state.reshape(*state.shape[:-2], -1)


def _state(flat: Array, like: Array) -> Array:
    *leading, h, k, v = like.shape
    return jnp.moveaxis(flat.reshape(*leading, k, h, v), -2, -3)
