"""Where each token stands: which document of a packed row it belongs to, and how many tokens came before it.

A decay weight between two places depends on their distance alone, and is zero across a document border. So the same
two integers per token serve every backend, in both directions.

Where rows lie in parts on the devices of a mesh axis, places count from the start of the part: a part is to a backend
what a row is. All that a device must know of the others is the id of the last real token before its part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int

from transnormer_jax.ops.linear_attention.shards import part_axis, per_device, specs


class Segments(NamedTuple):
    """Places of the tokens of packed rows, or of a part of each.

    Attributes:
      position: [B, N] number of real tokens up to and including this one. The place before the row is 0.
      run: [B, N] index of the document within the row, from 0. Padding belongs to the document before it. In a part, 0
        is the document to which the token before the part belongs.
    """

    position: Int[Array, "B N"]
    run: Int[Array, "B N"]


def find_segments(segment_ids: Int[Array, "B N"], id_before: Int[Array, " B"] | None = None) -> Segments:
    """Turns ids (0 is padding; another id starts another document) into places.

    Padding has no place of its own: it takes no step and starts no document, so a state passes through it unchanged
    and the ids on its two sides are compared with each other. `id_before` [B] is the id of the last real token before
    these, 0 or None if there is none.
    """
    real = segment_ids != 0
    if id_before is None:
        id_before = jnp.zeros_like(segment_ids[:, 0])
    last_real = jax.lax.cummax(jnp.where(real, jnp.arange(segment_ids.shape[1])[None], -1), axis=1)
    previous = jnp.pad(last_real[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    previous_id = jnp.where(previous >= 0, previous_id, id_before[:, None])
    starts = real & (previous_id != 0) & (segment_ids != previous_id)
    return Segments(jnp.cumsum(real, axis=1, dtype=jnp.int32), jnp.cumsum(starts, axis=1, dtype=jnp.int32))


def token_positions(segment_ids: Int[Array, "B N"], start: Int[Array, " B"]) -> Int[Array, "B N"]:
    """Position of each token within its document; padding repeats the position before it.

    Args:
      segment_ids: [B, N] int32, the documents of packed rows; 0 is padding.
      start: [B] int32, position of the first token of the first document, which goes on from an earlier call. The other
        documents start at 0.

    Returns:
      [B, N] int32.
    """
    axis = part_axis(segment_ids.shape[1])
    if axis is None:
        return _positions(find_segments(segment_ids), start)

    def positions_in_part(segment_ids: Array, start: Array) -> Array:
        segments = find_segments(segment_ids, id_before_part(segment_ids, axis))
        return _positions(segments, _start_of_part(segments, start, axis))

    batch, num_tokens = segment_ids.shape
    places = specs(batch, num_tokens, 1).places
    return per_device(positions_in_part, [places, PartitionSpec(places[0])], places)(segment_ids, start)


def _positions(segments: Segments, start: Int[Array, " B"]) -> Int[Array, "B N"]:
    position, run = segments
    starts = jnp.diff(run, axis=1, prepend=jnp.zeros_like(run[:, :1])) > 0
    before_document = jax.lax.cummax(jnp.where(starts, position - 1, 0), axis=1)
    return position - 1 - before_document + jnp.where(run == 0, start[:, None], 0)


def id_before_part(segment_ids: Int[Array, "B n"], axis: str) -> Int[Array, " B"]:
    """The id of the last real token in the parts before this device's, 0 if there is none."""
    last = jnp.max(jnp.where(segment_ids != 0, jnp.arange(segment_ids.shape[1])[None], -1), axis=1, keepdims=True)
    own = jnp.where(last >= 0, jnp.take_along_axis(segment_ids, jnp.maximum(last, 0), axis=1), 0)[:, 0]
    ids = jax.lax.all_gather(own, axis)  # [P, B]
    parts = jnp.arange(ids.shape[0])[:, None]
    latest = jnp.max(jnp.where((ids != 0) & (parts < jax.lax.axis_index(axis)), parts, -1), axis=0)
    return jnp.where(latest >= 0, jnp.take_along_axis(ids, jnp.maximum(latest, 0)[None], axis=0)[0], 0)


def _start_of_part(segments: Segments, start: Int[Array, " B"], axis: str) -> Int[Array, " B"]:
    """How many tokens of the document that reaches into this device's part came before it."""
    # After each part: the tokens of its last document so far, or of the whole part where no document begins in it.
    tail = _positions(segments, jnp.zeros_like(start))[:, -1] + 1
    tails, goes_on = jax.lax.all_gather((tail, segments.run[:, -1] == 0), axis)  # [P, B]

    def add(start: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        tail, goes_on = part
        return tail + jnp.where(goes_on, start, 0), start

    return jax.lax.scan(add, start, (tails, goes_on))[1][jax.lax.axis_index(axis)]
