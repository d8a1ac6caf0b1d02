"""The gradient: a call for the queries, and one for keys and values together where two states fit the registers."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.triton.attend import attend, decays, places
from transnormer_jax.ops.linear_attention.triton.blocks import choose_gradient_blocks
from transnormer_jax.ops.linear_attention.triton.launch import compute_capability, launch
from transnormer_jax.ops.linear_attention.triton.parts import cut


def gradients(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    saved: Any,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H K"], Float[Array, "B N H K"], Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """The gradients of q, k, v and the state; see `Backend.gradients`. Nothing is saved for it."""
    del saved

    def call(a: Array, b: Array, c: Array, entering: Array, *, reverse: bool) -> tuple[Array, Array]:
        return attend(a, b, c, log_decay, entering, segments, reverse=reverse, chunk_size=chunk_size)

    dq, _ = call(d_out, v, k, jnp.swapaxes(state, -1, -2), reverse=reverse)
    batch, num_tokens, num_heads, key_dim = q.shape
    value_dim = v.shape[3]
    capability = compute_capability(target_hardware())
    blocks = choose_gradient_blocks(key_dim, value_dim, q.dtype, capability)
    stride = num_heads * max(key_dim, value_dim)
    if blocks is None or cut(num_tokens, blocks.chunk, batch * num_heads, stride).parts > 1:
        dk, _ = call(v, d_out, q, jnp.swapaxes(d_state, -1, -2), reverse=not reverse)
        dv, d_first_state = call(k, q, d_out, d_state, reverse=not reverse)
        return dq, dk, dv, d_first_state

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
            "REVERSE": not reverse,
            "DOCUMENTS": segments is not None,
        },
    )
    return dq, dk, dv, d_first_state
