"""Where each token stands: which document of a packed row it belongs to, and how many tokens came before it.

A decay weight between two places depends on their distance alone, and is zero across a document border. So the same
two integers per token serve every backend, in both directions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int


class Segments(NamedTuple):
    """Places of the tokens of packed rows.

    Attributes:
      position: [B, N] number of real tokens up to and including this one. The place before the row is 0.
      run: [B, N] index of the document within the row, from 0. Padding belongs to the document before it.
    """

    position: Int[Array, "B N"]
    run: Int[Array, "B N"]


def find_segments(segment_ids: Int[Array, "B N"]) -> Segments:
    """Turns ids (0 is padding; another id starts another document) into places.

    Padding has no place of its own: it takes no step and starts no document, so a state passes through it unchanged
    and the ids on its two sides are compared with each other.
    """
    real = segment_ids != 0
    last_real = jax.lax.cummax(jnp.where(real, jnp.arange(segment_ids.shape[1])[None], -1), axis=1)
    previous = jnp.pad(last_real[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    previous_id = jnp.take_along_axis(segment_ids, jnp.maximum(previous, 0), axis=1)
    starts = real & (previous >= 0) & (segment_ids != previous_id)
    return Segments(jnp.cumsum(real, axis=1, dtype=jnp.int32), jnp.cumsum(starts, axis=1, dtype=jnp.int32))


def token_positions(segment_ids: Int[Array, "B N"], start: Int[Array, " B"]) -> Int[Array, "B N"]:
    """Position of each token within its document, [B, N] int32; padding repeats the position before it.

    The first document goes on from an earlier call: its first token has position `start` [B]. The others start at 0.
    """
    position, run = find_segments(segment_ids)
    starts = jnp.diff(run, axis=1, prepend=jnp.zeros_like(run[:, :1])) > 0
    before_document = jax.lax.cummax(jnp.where(starts, position - 1, 0), axis=1)
    return position - 1 - before_document + jnp.where(run == 0, start[:, None], 0)
