"""Decay weights of a chunk inside a kernel: those of `linear_attention/weights.py`, from places instead of tables.

Without documents all places are known when the kernel is traced, but for the short last chunk of a row. With documents
they come as an array [B, 8, N], prepared by XLA, of which three rows are used. They are small whole numbers in float32.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout
from transnormer_jax.ops.linear_attention.segments import Segments

ROWS = 8  # sublanes of one float32 register
_POSITION, _RUN, _TO_RIGHT = 0, 1, 2

# Where no weight is due, the distance is so large that its weight is 0 for every decay, and no mask is needed. A head
# without decay takes the smallest one, whose weight over any real distance is 1. All products stay finite.
_NEVER = 1e34
_SMALLEST = 1e-30


def decay_rates(log_decay: Array) -> Array:
    """The base-2 logarithm of the decay, [H] float32 < 0."""
    return jnp.minimum(log_decay * math.log2(math.e), -_SMALLEST)


def decay(rate: Array, distance: Array) -> Array:
    """The decay over a distance in tokens: 2^(rate * distance)."""
    return jnp.exp2(rate * distance)


def chunk_fades(layout: Layout, log_decay: Array, segments: Segments | None) -> Array:
    """exp(.) - 1 of the factor on a state that passes through each chunk, [#B * blocks, 1, chunks * H] float32."""
    num_tokens, padded = layout.problem.num_tokens, layout.num_blocks * layout.block
    if segments is None:
        ends = jnp.minimum(jnp.arange(0, padded + 1, layout.chunk), num_tokens)[None]
        passes = None
    else:
        ends, runs = (_edges(x, padded, layout.chunk) for x in segments)
        passes = (runs[:, 1:] == runs[:, :-1])[..., None]
    exponent = (ends[:, 1:] - ends[:, :-1])[..., None] * log_decay[None, None]
    fades = jnp.expm1(exponent if passes is None else jnp.where(passes, exponent, -jnp.inf))
    return fades.reshape(-1, 1, layout.chunks * log_decay.shape[0])


def chunk_places(layout: Layout, segments: Segments) -> Array:
    """Places of tokens in their chunks, [B, ROWS, N] float32: position and run from the left, steps to the right."""
    padded = layout.num_blocks * layout.block
    columns = []
    for x in segments:
        edges = _edges(x, padded, layout.chunk)
        x = jnp.pad(x, ((0, 0), (0, padded - x.shape[1])), mode="edge")
        x = x.reshape(x.shape[0], -1, layout.chunk)
        columns.append((x - edges[:, :-1, None], edges[:, 1:, None] - x))
    (position, to_right), (run, runs_to_right) = columns
    to_right = jnp.where(runs_to_right == 0, to_right, _NEVER)
    rows = [x.astype(jnp.float32).reshape(x.shape[0], padded) for x in (position, run, to_right)]
    places = jnp.stack(rows, axis=1)
    return jnp.pad(places, ((0, 0), (0, ROWS - len(rows)), (0, 0)))


def _edges(x: Array, padded: int, chunk: int) -> Array:
    """The value of a place [B, N] before each chunk and after the last, [B, M + 1]; it is 0 before the row."""
    x = jnp.pad(x, ((0, 0), (1, padded - x.shape[1])), mode="edge").at[:, 0].set(0)
    return x[:, ::chunk]


class Distances(NamedTuple):
    """Numbers of steps within a chunk of C tokens, float32; `_NEVER` where no weight is due.

    Attributes:
      intra: [C, C] from the token that writes to the token that reads.
      head: [C, 128] from the end where the state enters, the same in all lanes.
      tail: [C, 128] to the end where it leaves.
    """

    intra: Array
    head: Array
    tail: Array


def distances(layout: Layout, valid: Array | int, places: Array | None) -> Distances:
    """Distances in a chunk whose first `valid` tokens lie in the row, or of the chunk's places [ROWS, C]."""
    chunk = layout.chunk
    if places is None:
        row, column = (jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))
        steps = (column - row) if layout.reverse else (row - column)
        intra = jnp.where(steps >= 0, steps.astype(jnp.float32), _NEVER)
        index = jax.lax.broadcasted_iota(jnp.int32, (chunk, LANES), 0)
        to_left, to_right = jnp.minimum(index + 1, valid), jnp.maximum(valid - 1 - index, 0)
        to_left, to_right = to_left.astype(jnp.float32), to_right.astype(jnp.float32)
    else:
        intra, to_left, to_right = _document_distances(places, layout.reverse)
    return Distances(intra, *((to_right, to_left) if layout.reverse else (to_left, to_right)))


def _document_distances(places: Array, reverse: bool) -> tuple[Array, Array, Array]:
    chunk = places.shape[1]
    columns = places.T  # [C, ROWS]
    position, run, to_right = (columns[:, i : i + 1] for i in (_POSITION, _RUN, _TO_RIGHT))
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))
    intra = position - places[_POSITION : _POSITION + 1]
    if reverse:
        row, column, intra = column, row, -intra
    # Of two tokens at one place, only one is no padding. The order of the tokens decides, not that of the places.
    intra = jnp.where((run == places[_RUN : _RUN + 1]) & (row >= column), intra, _NEVER)
    to_left = jnp.where(run == 0, position, _NEVER)
    return intra, jnp.broadcast_to(to_left, (chunk, LANES)), jnp.broadcast_to(to_right, (chunk, LANES))
