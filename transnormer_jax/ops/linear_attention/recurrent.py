"""Linear attention token by token: the definition as `jax.lax.scan`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import State, pass_on, step_log_decay


def recurrent(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    initial_state: State,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H V"], State]:
    """S_t = (S_{t-1} + fade_t S_{t-1}) + k_t v_t^T, out_t = q_t S_t; the contract is in `primitive.py`."""
    del chunk_size
    steps = step_log_decay(log_decay, q.shape[1], segments, reverse=reverse)
    arriving, leaving = (jnp.expm1(x) for x in steps)  # [B, N, H] and [B, H]; see weights.py

    def step(state: Array, token: tuple[Array, ...]) -> tuple[Array, Array]:
        q_t, k_t, v_t, fade_t = (x.astype(jnp.float32) for x in token)
        state = pass_on(state, fade_t[..., None, None], k_t[..., :, None] * v_t[..., None, :])
        return state, jnp.sum(q_t[..., :, None] * state, axis=-2)

    tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, arriving))
    state, out = jax.lax.scan(step, initial_state, tokens, reverse=reverse)
    return jnp.moveaxis(out, 0, 1).astype(v.dtype), state + leaving[..., None, None] * state
