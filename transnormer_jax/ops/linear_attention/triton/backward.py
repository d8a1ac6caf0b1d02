"""The gradient: a call for the queries, and one for keys and values together where two states fit the registers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.chunked import step_gradient
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands
from transnormer_jax.ops.linear_attention.triton.blocks import choose_gradient_blocks
from transnormer_jax.ops.linear_attention.triton.forward import decays, places, sweep_rows
from transnormer_jax.ops.linear_attention.triton.launch import compute_capability, launch
from transnormer_jax.ops.linear_attention.triton.parts import cut


def backward(
    operands: Operands,
    saved: Any,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    chunk_size: int | None,
) -> Gradients:
    """The gradients by sweeps: the transpose of a sweep, which is linear in q, k, v and the state, is a reverse sweep.

    In the manner of arXiv 2405.17381, Algorithm 6.
    """
    del saved, chunk_size
    d_steps = step_gradient(operands, d_out, d_state) if decay_gradient else None
    q, k, v, log_decay, state, segments = operands
    dq, _ = sweep_rows(Operands(d_out, v, k, log_decay, jnp.swapaxes(state, -1, -2), segments), reverse=False)
    batch, num_tokens, num_heads, key_dim = q.shape
    value_dim = v.shape[3]
    capability = compute_capability(target_hardware())
    blocks = choose_gradient_blocks(key_dim, value_dim, q.dtype, capability)
    stride = num_heads * max(key_dim, value_dim)
    if blocks is None or cut(num_tokens, blocks.chunk, batch * num_heads, stride).parts > 1:
        dk, _ = sweep_rows(Operands(v, d_out, q, log_decay, jnp.swapaxes(d_state, -1, -2), segments), reverse=True)
        dv, d_first_state = sweep_rows(Operands(k, q, d_out, log_decay, d_state, segments), reverse=True)
        return Gradients(dq, dk, dv, d_steps, d_first_state)

    from transnormer_jax.ops.linear_attention.triton.gradient_kernel import sweep_gradients  # needs the package triton

    dk, dv, d_first_state = launch(
        sweep_gradients,
        [*(q, k, v, d_out), *decays(log_decay, blocks.chunk), d_state, *places(segments), num_tokens, value_dim],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (k, v, d_state)],
        programs=batch * num_heads,
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        compute_capability=capability,
        constants={
            "HEADS": num_heads,
            "K": key_dim,
            "V": value_dim,
            "BLOCK_K": blocks.key,
            "BLOCK_V": blocks.value,
            "CHUNK": blocks.chunk,
            "REVERSE": True,
            "DOCUMENTS": segments is not None,
        },
    )
    return Gradients(dq, dk, dv, d_steps, d_first_state)
