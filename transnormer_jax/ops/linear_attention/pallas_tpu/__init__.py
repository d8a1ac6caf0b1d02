"""Linear attention on TPU: a fused forward and a fused backward kernel in Pallas."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import Hardware, interpret_mode, target_hardware
from transnormer_jax.ops.linear_attention.backends import Problem
from transnormer_jax.ops.linear_attention.decay import LogDecay
from transnormer_jax.ops.linear_attention.pallas_tpu.backward import backward_kernel
from transnormer_jax.ops.linear_attention.pallas_tpu.documents import document_borders
from transnormer_jax.ops.linear_attention.pallas_tpu.forward import forward_kernel
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout, choose_layout
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import decay_operands
from transnormer_jax.ops.linear_attention.segments import Segments, find_segments


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
    q: Float[Array, "B N G K"],
    k: Float[Array, "B N G K"],
    v: Float[Array, "B N H V"],
    log_decay: LogDecay,
    state: Float[Array, "B *S H K V"],
    segments: Segments | None,
    *,
    chunk_size: int | None,
    save: bool,
) -> tuple[Array, Array, Any]:
    """Linear attention; `backends.Backend` has the contract.

    Key heads that several heads share are read where they are if K is a multiple of 128, else they are repeated first.
    What is saved are the states before each block, [B, blocks, K, H * V], and the final state; nothing with a state
    per document.
    """
    q, k = _repeat_keys(q, k, v)
    max_segments = None if state.ndim == 4 else state.shape[1]
    if max_segments is not None and segments is None:
        segments = find_segments(jnp.ones(v.shape[:2], jnp.int32))
    layout = _layout(q, v, log_decay, segments, chunk_size, max_segments)
    decay = decay_operands(layout, log_decay, segments)
    borders = [] if segments is None or max_segments is None else document_borders(layout, segments)
    save = save and max_segments is None
    out, final, *saved = forward_kernel(
        layout, _flat(q), _flat(k), _flat(v), decay, _flat_state(state), borders, save=save
    )
    final = _state(final, state)
    return out.reshape(v.shape), final, (saved[0], final) if save else None


def backward(
    q: Float[Array, "B N G K"],
    k: Float[Array, "B N G K"],
    v: Float[Array, "B N H V"],
    log_decay: LogDecay,
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    saved: tuple[Array, Array],
    d_out: Float[Array, "B N H V"],
    d_final: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    chunk_size: int | None,
) -> tuple[Array, Array, Array, Array | None, Array]:
    """Gradients of q, k, v, of the log decay of each token (or None), and of the initial state."""
    del state
    states, final = saved
    shape = *q.shape[:3], -1, q.shape[3]
    q, k = _repeat_keys(q, k, v)
    layout = _layout(q, v, log_decay, segments, chunk_size)
    decay = decay_operands(layout, log_decay, segments)
    operands = _flat(q), _flat(k), _flat(v), decay, states, _flat(d_out), _flat_state(d_final)
    dq, dk, dv, d_state, *rows = backward_kernel(layout, *operands, decay_gradient=decay_gradient)
    d_steps = _d_steps(layout, rows[0], jnp.sum(final * d_final, axis=(2, 3))) if decay_gradient else None
    if dq.shape[2] > shape[2] * shape[4]:  # of repeated heads
        dq, dk = (x.reshape(shape).astype(jnp.float32).sum(3).astype(x.dtype) for x in (dq, dk))
    dq, dk = (x.reshape(*shape[:3], shape[4]) for x in (dq, dk))
    return dq, dk, dv.reshape(v.shape), d_steps, _state(d_state, d_final)


def _layout(
    q: Array,
    v: Array,
    log_decay: Array,
    segments: Segments | None,
    chunk_size: int | None,
    max_segments: int | None = None,
) -> Layout:
    problem = Problem.of(q, v, log_decay, max_segments, packed=segments is not None)
    return choose_layout(problem, target_hardware(), chunk_size)


def _repeat_keys(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
    """Key heads whose lanes do not fill registers are repeated for the heads that share them."""
    if q.shape[3] % LANES == 0:
        return q, k
    repeats = v.shape[2] // q.shape[2]
    return jnp.repeat(q, repeats, axis=2), jnp.repeat(k, repeats, axis=2)


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
