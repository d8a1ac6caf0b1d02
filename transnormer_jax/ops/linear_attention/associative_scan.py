"""Linear attention by `jax.lax.associative_scan` over tokens: logarithmic depth, and a K x V state for every token.

The formulation to measure the others against: it reads and writes N K V numbers where a chunk needs N (K + V). Its
gradient is a second scan, from the other end.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.ops.linear_attention.decay import token_steps
from transnormer_jax.ops.linear_attention.documents import set_states, states_of
from transnormer_jax.ops.linear_attention.operands import Gradients, LogDecay, Operands, State
from transnormer_jax.ops.linear_attention.segments import Segments


def forward(operands: Operands, **options: Any) -> tuple[Float[Array, "B N H V"], State, None]:
    """Every state S_t at once."""
    del options
    q, k, v, log_decay, state, segments = operands
    states, _, _ = _all_states(k, v, log_decay, state, segments)
    out = _dot("bnhk,bnhkv->bnhv", _per_head(q, v), states)
    if state.ndim == 4:
        return out.astype(v.dtype), states[:, -1], None
    index, _, last = _documents(segments, v)
    return out.astype(v.dtype), set_states(state, index, last, states), None


def backward(
    operands: Operands,
    saved: None,
    d_out: Float[Array, "B N H V"],
    d_final: State,
    *,
    decay_gradient: bool,
    **options: Any,
) -> Gradients:
    """dS_t = exp(step_{t+1}) dS_{t+1} + q_t d_out_t^T, over recomputed states."""
    del saved, options
    q, k, v, log_decay, state, segments = operands
    states, before, steps = _all_states(k, v, log_decay, state, segments)
    index, first, last = _documents(segments, v)
    wide_q, wide_k, d_out = _per_head(q, v), _per_head(k, v), d_out.astype(jnp.float32)
    to_next = jnp.where(first[..., None], -jnp.inf, steps)
    to_next = jnp.concatenate([to_next[:, 1:], jnp.zeros_like(to_next[:, :1])], axis=1)
    d_states = wide_q[..., :, None] * d_out[..., None, :]
    if state.ndim == 4:
        d_states = d_states.at[:, -1].add(d_final)
    else:
        d_states += jnp.where(last[..., None, None, None], states_of(d_final, index), 0)
    _, d_states = jax.lax.associative_scan(_combine, (to_next, d_states), axis=1, reverse=True)

    def per_group(x: Array) -> Array:
        return x.reshape(*q.shape[:3], -1, q.shape[3]).sum(3).astype(q.dtype)

    dq = per_group(_dot("bnhv,bnhkv->bnhk", d_out, states))
    dk = per_group(_dot("bnhv,bnhkv->bnhk", v.astype(jnp.float32), d_states))
    dv = _dot("bnhk,bnhkv->bnhv", wide_k, d_states).astype(v.dtype)
    d_before = jnp.exp(steps)[..., None, None] * d_states
    if state.ndim == 4:  # it enters the document that reaches across the left border
        d_initial = jnp.where((index[:, 0] == 0)[:, None, None, None], d_before[:, 0], 0)
    else:
        d_initial = set_states(d_final, index, first, d_before)
    d_steps = jnp.sum(d_before * before, axis=(-2, -1)) if decay_gradient else None
    return Gradients(dq, dk, dv, d_steps, d_initial)


def _all_states(
    k: Array, v: Array, log_decay: LogDecay, state: State, segments: Segments | None
) -> tuple[Float[Array, "B N H K V"], Float[Array, "B N H K V"], Float[Array, "B N H"]]:
    """The state after each token, the state before it, and the step between them."""
    index, first, _ = _documents(segments, v)
    steps = jnp.broadcast_to(token_steps(log_decay, segments, v.shape[1])[0], v.shape[:3])
    # At the first token of a document its own initial state enters; without one per document, the row's, once.
    enters = states_of(state if state.ndim == 5 else state[:, None], index)
    enters = jnp.where(first[..., None, None, None], enters, 0)
    kv = _per_head(k, v)[..., :, None] * v.astype(jnp.float32)[..., None, :] + jnp.exp(steps)[..., None, None] * enters
    # Decays add as logarithms, exactly for equal steps; -inf forgets everything before.
    elements = jnp.where(first[..., None], -jnp.inf, steps), kv
    _, states = jax.lax.associative_scan(_combine, elements, axis=1)
    earlier = jnp.concatenate([jnp.zeros_like(states[:, :1]), states[:, :-1]], axis=1)
    return states, jnp.where(first[..., None, None, None], enters, earlier), steps


def _combine(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
    return earlier[0] + later[0], jnp.exp(later[0])[..., None, None] * earlier[1] + later[1]


def _documents(segments: Segments | None, v: Array) -> tuple[Int[Array, "B N"], Bool[Array, "B N"], Bool[Array, "B N"]]:
    """Index of each token's document, and whether the token is its first or its last."""
    index = jnp.zeros(v.shape[:2], jnp.int32) if segments is None else segments.segment_index
    changes = jnp.diff(index, axis=1) > 0
    ends = jnp.ones_like(changes, shape=(v.shape[0], 1))
    return index, jnp.concatenate([ends, changes], axis=1), jnp.concatenate([changes, ends], axis=1)


def _per_head(x: Float[Array, "B N G K"], v: Float[Array, "B N H V"]) -> Float[Array, "B N H K"]:
    return jnp.repeat(x.astype(jnp.float32), v.shape[2] // x.shape[2], axis=2)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision=jax.lax.Precision.HIGHEST)
