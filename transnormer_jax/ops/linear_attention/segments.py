"""Position and document of each token of packed rows.

Where rows are split over the devices of a mesh axis, both count from the start of the shard: a backend sees a shard of
a row exactly as it sees a whole row. All that a device needs from the others is the id of the last token before its
shard that is not padding.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from transnormer_jax.ops.linear_attention.shards import Axes, find_sharding, per_device


class Segments(NamedTuple):
    """Position and document of the tokens of packed rows, or of a shard of each row.

    Attributes:
      position: [B, N] number of tokens that are not padding, up to and including this one. It is 0 before the row.
      segment_index: [B, N] index of the document within the row, from 0. Padding belongs to the document before it. In
        a shard, 0 is the document of the token before the shard.
    """

    position: Int[Array, "B N"]
    segment_index: Int[Array, "B N"]


def find_segments(segment_ids: Int[Array, "B N"], id_before: Int[Array, " B"] | None = None) -> Segments:
    """Positions and documents from ids: 0 is padding, and where the id changes another document starts.

    Padding takes no step and starts no document: a state passes through it unchanged, and the ids on its two sides are
    compared with each other. `id_before` [B] is the id of the last token before these that is not padding, 0 or None if
    there is none.
    """
    if id_before is None:
        id_before = jnp.zeros_like(segment_ids[:, 0])
    ids = jnp.concatenate([id_before[:, None], segment_ids], axis=1)
    last_real = jax.lax.cummax(jnp.where(ids != 0, jnp.arange(ids.shape[1])[None], 0), axis=1)
    previous_id = jnp.take_along_axis(ids, last_real[:, :-1], axis=1)
    real = segment_ids != 0
    starts = real & (previous_id != 0) & (segment_ids != previous_id)
    return Segments(jnp.cumsum(real, axis=1, dtype=jnp.int32), jnp.cumsum(starts, axis=1, dtype=jnp.int32))


def distinct_ids(segment_ids: Int[Array, "B N"]) -> Int[Array, "B N"]:
    """Ids that no two documents of a row share, for attentions that compare them; 0 stays padding.

    An id that comes again after another one is another document.
    """
    return jnp.where(segment_ids != 0, find_segments(segment_ids).segment_index + 1, 0)


def token_positions(segment_ids: Int[Array, "B N"], start: Int[Array, " B"]) -> Int[Array, "B N"]:
    """Position of each token within its document; padding repeats the position before it.

    Args:
      segment_ids: [B, N] int32, the documents of packed rows; 0 is padding.
      start: [B] int32, position of the first token of the first document, which may continue an earlier call. The other
        documents start at 0.

    Returns:
      [B, N] int32.
    """
    sharding = find_sharding(segment_ids)
    if sharding is None or sharding.tokens is None:
        return _positions(find_segments(segment_ids), start)
    axis = sharding.tokens

    def positions_in_shard(segment_ids: Array, start: Array) -> Array:
        segments = find_segments(segment_ids, id_before_shard(segment_ids, axis))
        return _positions(segments, _start_of_shard(segments, start, axis))

    return per_device(positions_in_shard, (sharding.of("bn"), sharding.of("b")), sharding.of("bn"))(segment_ids, start)


def _positions(segments: Segments, start: Int[Array, " B"]) -> Int[Array, "B N"]:
    position, index = segments
    starts = jnp.diff(index, axis=1, prepend=jnp.zeros_like(index[:, :1])) > 0
    before_document = jax.lax.cummax(jnp.where(starts, position - 1, 0), axis=1)
    return position - 1 - before_document + jnp.where(index == 0, start[:, None], 0)


def id_before_shard(segment_ids: Int[Array, "B n"], axis: Axes) -> Int[Array, " B"]:
    """The id of the last token before this device's shard that is not padding, 0 if there is none."""

    def last_id(ids: Array) -> Array:
        last = jnp.max(jnp.where(ids != 0, jnp.arange(ids.shape[1])[None], 0), axis=1, keepdims=True)
        return jnp.take_along_axis(ids, last, axis=1)[:, 0]

    ids = jax.lax.all_gather(last_id(segment_ids), axis, axis=1)  # [B, P]
    return last_id(jnp.where(jnp.arange(ids.shape[1])[None] < jax.lax.axis_index(axis), ids, 0))


def _start_of_shard(segments: Segments, start: Int[Array, " B"], axis: Axes) -> Int[Array, " B"]:
    """How many tokens of the document that reaches into this device's shard came before it."""
    # After each shard: the tokens of its last document so far, or of the whole shard if no document starts in it.
    counts = _positions(segments, jnp.zeros_like(start))[:, -1] + 1
    counts, continues = jax.lax.all_gather((counts, segments.segment_index[:, -1] == 0), axis)  # [P, B]

    def add(start: Array, shard: tuple[Array, Array]) -> tuple[Array, Array]:
        count, continues = shard
        return count + jnp.where(continues, start, 0), start

    return jax.lax.scan(add, start, (counts, continues))[1][jax.lax.axis_index(axis)]
