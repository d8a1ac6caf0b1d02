"""Rows in parts, one on each device of a mesh axis: context parallelism, with one gather of states.

Every device sums up what its part writes, K^T V with decay weights; all of these are gathered; and each device weighs
those before its part into the state that enters it. What then remains is the operator itself on the part, by any
backend. The transpose of the gather is a scatter of as many sums. So what travels is one state [B, H, K, V] per device
and direction, however long the rows are: LASP-2 (arXiv 2502.07563) with decay and with documents.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import State, end_weights, exponent, pass_on
from transnormer_jax.ops.precision import dot


class _Borders(NamedTuple):
    """The P + 1 borders of P parts.

    Attributes:
      position: [P + 1, B] real tokens before the border.
      run: [P + 1, B] documents that began before it, the row's first not counted.
    """

    position: Int[Array, "borders rows"]
    run: Int[Array, "borders rows"]


def part_states(
    k: Float[Array, "B n H K"],
    v: Float[Array, "B n H V"],
    log_decay: Float[Array, " H"],
    state: State,
    segments: Segments | None,
    axis: str,
    *,
    reverse: bool = False,
) -> tuple[State, State]:
    """The state that enters this device's part, and the one that leaves the row; to be called under `shard_map`.

    Args:
      k: [B, n, H, K], keys of the part.
      v: [B, n, H, V], values of the part.
      log_decay: [H].
      state: [B, H, K, V], enters the row; the same on all devices.
      segments: places of the part's tokens, counted from its own start.
      axis: of the mesh; its devices hold the parts in order.
      reverse: time runs backwards, and the state enters at the row's end.

    Returns:
      Both [B, H, K, V] float32.
    """
    weights = end_weights(log_decay, k.shape[1], segments, at_start=reverse)
    written = dot("bnhk,bnhv->bhkv", k * weights[..., None].astype(k.dtype), v)
    written = jax.lax.all_gather(written, axis)  # [P, B, H, K, V]
    parts, here = written.shape[0], jax.lax.axis_index(axis)
    borders = _find_borders(k.shape[1], segments, axis)
    entered_at = jnp.array([parts if reverse else 0])
    written_at = jnp.arange(parts) + (0 if reverse else 1)  # where a part's own sum is complete

    def state_at(border: Array | int) -> State:
        shares = jnp.exp(_border_exponent(borders, log_decay, written_at, border, reverse))
        fade = jnp.expm1(_border_exponent(borders, log_decay, entered_at, border, reverse))[0]
        sums = jnp.sum(shares[..., None, None] * written, axis=0)
        return pass_on(state, fade[..., None, None], sums)

    return state_at(here + 1 if reverse else here), state_at(0 if reverse else parts)


def _find_borders(num_tokens: int, segments: Segments | None, axis: str) -> _Borders:
    if segments is None:
        parts = jax.lax.axis_size(axis)
        return _Borders(num_tokens * jnp.arange(parts + 1)[:, None], jnp.zeros((parts + 1, 1), jnp.int32))
    ends = jax.lax.all_gather(jnp.stack([segments.position[:, -1], segments.run[:, -1]]), axis)  # [P, 2, B]
    sums = jnp.pad(jnp.cumsum(ends, axis=0), ((1, 0), (0, 0), (0, 0)))
    return _Borders(sums[:, 0], sums[:, 1])


def _border_exponent(
    borders: _Borders, log_decay: Float[Array, " H"], source: Int[Array, " parts"], target: Array | int, reverse: bool
) -> Float[Array, "parts rows H"]:
    """log_decay * distance from each source to the target; -inf against the time, and across a document's start."""
    position, run = borders
    reached = (source >= target) if reverse else (source <= target)
    same = reached[:, None] & (run[source] == run[target][None])
    distance = jnp.abs(position[target][None] - position[source])
    return exponent(log_decay, distance, same)
