"""Linear attention on TPU: a fused forward and a fused backward kernel in Pallas."""

import jax.numpy as jnp
from jax import Array

from transnormer_jax.ops.hardware import Hardware, interpret_mode, target_hardware
from transnormer_jax.ops.linear_attention.backends import Problem
from transnormer_jax.ops.linear_attention.pallas_tpu.backward import backward
from transnormer_jax.ops.linear_attention.pallas_tpu.forward import forward
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout, choose_layout
from transnormer_jax.ops.linear_attention.segments import Segments


def refusal(problem: Problem, hardware: Hardware) -> str | None:
    """Why the kernels cannot run here, or None."""
    if hardware.platform != "tpu" and not interpret_mode():
        return f"it needs a TPU, and this is a {hardware.platform}"
    if problem.dtype == jnp.float16:
        return "a TPU computes in bfloat16 and float32, not in float16"
    return None


def attend(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    initial_state: Array,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    """Linear attention; see `primitive.py` for the contract of a backend."""
    layout = _layout(q, v, reverse, chunk_size)
    state = _flat_state(initial_state)
    out, state = forward(layout, _flat(q), _flat(k), _flat(v), log_decay, state, segments, save=False)
    return out.reshape(v.shape), _state(state, initial_state)


def attend_and_save(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    initial_state: Array,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Array, Array, Array]:
    """As `attend`, with the states between blocks for `gradients`."""
    layout = _layout(q, v, reverse, chunk_size)
    state = _flat_state(initial_state)
    out, state, states = forward(layout, _flat(q), _flat(k), _flat(v), log_decay, state, segments, save=True)
    return out.reshape(v.shape), _state(state, initial_state), states


def gradients(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    initial_state: Array,
    segments: Segments | None,
    states: Array,
    d_out: Array,
    d_state: Array,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Array, Array, Array, Array]:
    """Gradients of q, k, v and the initial state."""
    layout = _layout(q, v, reverse, chunk_size)
    dq, dk, dv, d_initial_state = backward(
        layout, _flat(q), _flat(k), _flat(v), log_decay, segments, states, _flat(d_out), _flat_state(d_state)
    )
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape), _state(d_initial_state, initial_state)


def _layout(q: Array, v: Array, reverse: bool, chunk_size: int | None) -> Layout:
    return choose_layout(Problem.of(q, v), target_hardware(), reverse=reverse, chunk_size=chunk_size)


def _flat(x: Array) -> Array:
    """[B, N, H, K] -> [B, N, H * K], which is free where a projection made x."""
    return x.reshape(*x.shape[:2], -1)


def _flat_state(state: Array) -> Array:
    """[B, H, K, V] -> [B, K, H * V]: the lanes of v."""
    return _flat(jnp.moveaxis(state, 1, 2))


def _state(flat: Array, like: Array) -> Array:
    b, h, k, v = like.shape
    return jnp.moveaxis(flat.reshape(b, k, h, v), 1, 2)
