"""One chunk of the block at hand, as both kernels see it: its tokens and its decay weights."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from transnormer_jax.ops.linear_attention.pallas_tpu import grid
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import join
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Distances, decay, distances
from transnormer_jax.ops.linear_attention.weights import pass_on


class ScalarRefs(NamedTuple):
    """What `grid.scalars` brings: decay rates [H], fades [1, 1, chunks * H], places of documents [1, ROWS, T]."""

    rates: jax.Ref
    fades: jax.Ref
    places: jax.Ref | None


class Chunk:
    """A chunk of C tokens of the block at hand.

    Attributes:
      rows: its rows of the block.
    """

    def __init__(self, layout: Layout, walk: Layout, index: int, scalars: ScalarRefs):
        """Chunk `index` of the block that a grid in the direction of `walk` is at, with the weights of `layout`."""
        self.rows = slice(index * layout.chunk, (index + 1) * layout.chunk)
        self._layout = layout
        self._scalars = scalars
        self._first_fade = index * layout.problem.num_heads
        self._valid: Array | int = layout.chunk
        if layout.ragged:
            start = grid.time(walk, pl.program_id(2)) * layout.block + self.rows.start
            self._valid = jnp.clip(layout.problem.num_tokens - start, 0, layout.chunk)
        places = None if scalars.places is None else scalars.places[0, :, self.rows]
        self._distances: Distances = distances(layout, self._valid, places)

    def load(self, ref: jax.Ref, lanes: slice) -> Array:
        """Its tokens from a block [1, T, lanes]: [C, lanes]. Beyond the row they are zero, not what memory holds."""
        x = ref[0, self.rows, lanes]
        if not self._layout.ragged:
            return x
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(row < self._valid, x, jnp.zeros_like(x))

    def intra(self, head: int) -> Array:
        """The weights between its tokens, [C, C]: rows read, columns write."""
        return decay(self._rate(head), self._distances.intra)

    def head(self, heads: range, size: int) -> Array:
        """The weight of the arriving state at each token, [C, size] for heads that share that many lanes."""
        return self._per_token(self._distances.head, heads, size)

    def tail(self, heads: range, size: int) -> Array:
        """The weight of each token in the leaving state, [C, size]."""
        return self._per_token(self._distances.tail, heads, size)

    def pass_on(self, state: Array, written: Array, heads: range) -> Array:
        """The state [K, lanes] at the other side of the chunk, which writes `written` [K, lanes]."""
        fades = [self._scalars.fades[0, 0, self._first_fade + self._global(head)] for head in heads]
        fade = join([jnp.full((1, state.shape[1]), fade) for fade in fades])
        return pass_on(state, fade, written)

    def _per_token(self, distance: Array, heads: range, size: int) -> Array:
        if len(heads) == 1:
            weight = decay(self._rate(heads.start), distance)
            return jnp.concatenate([weight] * -(-size // LANES), axis=1)[:, :size]
        rates = join([jnp.full((1, size), self._rate(head)) for head in heads])
        return decay(rates, jnp.concatenate([distance] * (size // LANES), axis=1))

    def _rate(self, head: int) -> Array:
        return self._scalars.rates[self._global(head)]

    def _global(self, head: int) -> Array:
        return pl.program_id(1) * self._layout.heads + head
