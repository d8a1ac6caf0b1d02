"""Rows split over the devices of a mesh axis: context parallelism, with one gather of states.

A shard is a large chunk. Every device sums up what its shard adds to the state, all of these sums are gathered, and
`scan_states` gives the state that enters each shard. What remains is the operator itself on the shard, by any backend.
The transpose of the gather is a scatter of as many sums. So one state [B, H, K, V] per device travels in each
direction, however long the rows are: LASP-2 (arXiv 2502.07563) with decay and with documents.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.decay import LogDecay, State, scan_states, token_steps
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.shards import Axes
from transnormer_jax.ops.precision import dot


def states_at_shard(
    k: Float[Array, "B n G K"],
    v: Float[Array, "B n H V"],
    log_decay: LogDecay,
    state: State,
    segments: Segments | None,
    axis: Axes,
) -> tuple[State, State]:
    """The state that enters this device's shard, and the one that leaves the row; to be called under `shard_map`.

    Args:
      k: keys of the shard.
      v: values of the shard.
      log_decay: of the shard's tokens, or constant.
      state: enters the row; the same on all devices.
      segments: of the shard, counted from its own start.
      axis: of the mesh; its devices hold the shards in order.
    """
    steps, _ = token_steps(log_decay, segments, k.shape[1])
    # Summed from the end, where the weights that matter have small exponents.
    from_end = jax.lax.cumsum(steps, axis=1, reverse=True)
    k_decay, total = from_end - steps, from_end[:, 0]
    if log_decay.ndim == 1:  # exact
        position = jnp.arange(k.shape[1])[None] if segments is None else segments.position
        k_decay = (position[:, -1:] - position)[..., None] * log_decay[None, None]
    if segments is not None:
        k_decay = jnp.where((segments.segment_index == segments.segment_index[:, -1:])[..., None], k_decay, -jnp.inf)
        total = jnp.where((segments.segment_index[:, -1] == 0)[:, None], total, -jnp.inf)
    decayed = (v * jnp.exp(k_decay)[..., None]).astype(v.dtype)
    decayed = decayed.reshape(*v.shape[:2], k.shape[2], -1, v.shape[3])
    kv_sum = dot("bngk,bngrv->bgrkv", k, decayed).reshape(state.shape)
    chunk_decay, kv_sums = jax.lax.all_gather((jnp.expm1(total), kv_sum), axis, axis=1)
    before, after = scan_states(state, chunk_decay, kv_sums)
    return jax.lax.dynamic_index_in_dim(before, jax.lax.axis_index(axis), 1, keepdims=False), after[:, -1]


def sum_of_later_shards(
    k: Float[Array, "B n G K"], v: Float[Array, "B n H V"], segments: Segments, axis: Axes
) -> State:
    """What the shards after this one add, without decay, to the document that reaches across its right border."""
    continues = (segments.segment_index == 0)[..., None, None]
    grouped = jnp.where(continues, v, 0).reshape(*v.shape[:2], k.shape[2], -1, v.shape[3])
    kv_sum = dot("bngk,bngrv->bgrkv", k, grouped)
    kv_sum = kv_sum.reshape(k.shape[0], v.shape[2], *kv_sum.shape[-2:])
    chunk_decay = jnp.where(segments.segment_index[:, -1:] == 0, 0.0, -1.0)
    chunk_decay = jnp.broadcast_to(chunk_decay, kv_sum.shape[:2])
    chunk_decay, kv_sums = jax.lax.all_gather((chunk_decay, kv_sum), axis, axis=1)
    before, _ = scan_states(jnp.zeros_like(kv_sum), chunk_decay, kv_sums, reverse=True)
    return jax.lax.dynamic_index_in_dim(before, jax.lax.axis_index(axis), 1, keepdims=False)
