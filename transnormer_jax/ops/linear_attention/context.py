"""Rows split over the devices of a mesh axis: context parallelism, with one gather of states.

A shard is a large chunk. Every device sums up what its shard adds to the state, all of these sums are gathered, and
`scan_states` gives the state that enters each shard. What remains is the operator itself on the shard, by any backend.
The transpose of the gather is a scatter of as many sums. So one state [B, H, K, V] per device travels in each
direction, however long the rows are: LASP-2 (arXiv 2502.07563) with decay and with documents.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.linear_attention.decay import scan_states, token_steps
from transnormer_jax.ops.linear_attention.documents import set_states, states_of
from transnormer_jax.ops.linear_attention.operands import LogDecay, State
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.shards import Axes
from transnormer_jax.ops.precision import dot


def states_at_shard(
    k: Float[Array, "B n G K"],
    v: Float[Array, "B n H V"],
    log_decay: LogDecay,
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    axis: Axes,
    restart: Float[Array, "B H K V"] | None = None,
) -> tuple[Float[Array, "B H K V"], Float[Array, "B H K V"]]:
    """The state that enters this device's shard, and the one that leaves the row; to be called under `shard_map`.

    Args:
      log_decay: of the shard's tokens, or constant.
      state: enters the row; the same on all devices.
      segments: of the shard, counted from its own start.
      axis: of the mesh; its devices hold the shards in order.
      restart: initial state of the shard's last document, if that starts in the shard. None is zero.
    """
    steps, _ = token_steps(log_decay, segments, k.shape[1])
    in_last = jnp.ones(steps.shape[:2], bool)
    if segments is not None:
        in_last = segments.segment_index == segments.segment_index[:, -1:]
    # Summed from the end, where the weights that matter have small exponents.
    from_end = jax.lax.cumsum(jnp.where(in_last[..., None], steps, 0), axis=1, reverse=True)
    k_decay, total = from_end - steps, from_end[:, 0]
    if log_decay.ndim == 1:  # exact
        position = jnp.arange(k.shape[1])[None] if segments is None else segments.position
        k_decay = (position[:, -1:] - position)[..., None] * log_decay[None, None]
    k_decay = jnp.where(in_last[..., None], k_decay, -jnp.inf)
    decayed = (v * jnp.exp(k_decay)[..., None]).astype(v.dtype)
    decayed = decayed.reshape(*v.shape[:2], k.shape[2], -1, v.shape[3])
    kv_sum = dot("bngk,bngrv->bgrkv", k, decayed).reshape(state.shape)
    chunk_decay = jnp.expm1(total)
    if segments is not None:
        starts = (segments.segment_index[:, -1] > 0)[:, None]
        if restart is not None:
            kv_sum += jnp.where(starts, jnp.exp(total), 0)[..., None, None] * restart
        chunk_decay = jnp.where(starts, -1.0, chunk_decay)
    chunk_decay, kv_sums = jax.lax.all_gather((chunk_decay, kv_sum), axis, axis=1)
    before, after = scan_states(state, chunk_decay, kv_sums)
    return jax.lax.dynamic_index_in_dim(before, jax.lax.axis_index(axis), 1, keepdims=False), after[:, -1]


def first_document_of_shard(segments: Segments, axis: Axes) -> Int[Array, " B"]:
    """The index in the row of the document that has index 0 in this device's shard."""
    started = jax.lax.all_gather(segments.segment_index[:, -1], axis)  # [P, B]
    earlier = jnp.arange(started.shape[0]) < jax.lax.axis_index(axis)
    return jnp.sum(jnp.where(earlier[:, None], started, 0), axis=0)


def document_states_at_shard(
    k: Float[Array, "B n G K"],
    v: Float[Array, "B n H V"],
    log_decay: LogDecay,
    states: Float[Array, "B S H K V"],
    segments: Segments,
    axis: Axes,
) -> Float[Array, "B S H K V"]:
    """The initial states of the shard's documents, from those of the row's; the first one may come from earlier shards.

    The arguments are those of `states_at_shard`, with a state for every document of the row.
    """
    index = first_document_of_shard(segments, axis)[:, None] + jnp.arange(states.shape[1])[None]
    own = states_of(states, index)
    restart = states_of(own, segments.segment_index[:, -1:])[:, 0]
    entering, _ = states_at_shard(k, v, log_decay, states[:, 0], segments, axis, restart)
    return own.at[:, 0].set(entering)


def document_states_of_row(
    final: Float[Array, "B S H K V"], segments: Segments, axis: Axes
) -> Float[Array, "B S H K V"]:
    """The final states of the row's documents, from those of the shard's: one sum over the devices.

    Each document's state is that of the last shard it reaches.
    """
    is_last = jax.lax.axis_index(axis) == jax.lax.axis_size(axis) - 1
    number = jnp.arange(final.shape[1])[None]
    ends = (number < segments.segment_index[:, -1:]) | is_last
    row = jnp.zeros_like(final)
    index = first_document_of_shard(segments, axis)[:, None] + number
    return jax.lax.psum(set_states(row, index, ends, final), axis)


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
