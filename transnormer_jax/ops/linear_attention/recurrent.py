"""Linear attention token by token: the definition as `jax.lax.scan`, with the gradient of the chunked form."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.decay import decay_and_add, token_steps
from transnormer_jax.ops.linear_attention.operands import Operands, State


def forward(operands: Operands, **_: Any) -> tuple[Float[Array, "B N H V"], State, None]:
    """S_t = exp(step_t) S_{t-1} + k_t v_t^T, out_t = q_t S_t."""
    q, k, v, log_decay, state, segments = operands
    batch, num_tokens, num_heads = v.shape[:3]
    by_document, rows = state.ndim == 5, jnp.arange(batch)
    steps, starts = (jnp.broadcast_to(x, (batch, *x.shape[1:])) for x in token_steps(log_decay, segments, num_tokens))
    index = jnp.zeros((batch, num_tokens), jnp.int32) if segments is None else segments.segment_index
    initial = state if by_document else jnp.zeros_like(state)[:, None]

    def step(carry: tuple[Array, Array], token: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        state, final_states = carry
        q_t, k_t, v_t, step_t, starts_t, index_t = token
        q_t, k_t = (jnp.repeat(x.astype(jnp.float32), num_heads // x.shape[1], axis=1) for x in (q_t, k_t))
        new = initial.at[rows, index_t if by_document else jnp.zeros_like(index_t)].get(mode="fill", fill_value=0)
        state = jnp.where(starts_t[:, None, None, None] > 0, new, state)
        kv = k_t[..., :, None] * v_t.astype(jnp.float32)[..., None, :]
        state = decay_and_add(state, jnp.expm1(step_t)[..., None, None], kv)
        if by_document:
            final_states = final_states.at[rows, index_t].set(state, mode="drop")
        return (state, final_states), jnp.sum(q_t[..., :, None] * state, axis=-2)

    first = state[:, 0] if by_document else state
    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, steps, starts, index))
    (last, final_states), out = jax.lax.scan(step, (first, initial), tokens)
    return jnp.moveaxis(out, 0, 1).astype(v.dtype), final_states if by_document else last, None
