"""Packed rows with a state per document: every document starts a new chunk.

Where the initial and the final state of each document are wanted, states would enter and leave in the middle of chunks.
Instead, the tokens of document d are moved to the next border between chunks. Then every chunk belongs to one document,
states are exchanged at borders only, and a row grows by less than one chunk per document.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from transnormer_jax.ops.linear_attention.decay import ChunkDecay, decay_and_add, scan_states, split_decay
from transnormer_jax.ops.linear_attention.operands import LogDecay
from transnormer_jax.ops.linear_attention.segments import Segments


class ChunkDocuments(NamedTuple):
    """Which document each of M chunks belongs to.

    Attributes:
      document: its index, or S for a chunk that holds no token.
      first: whether the document starts with this chunk.
      last: whether it ends with this chunk.
    """

    document: Int[Array, "B M"]
    first: Bool[Array, "B M"]
    last: Bool[Array, "B M"]


class DocumentLayout(NamedTuple):
    """Where tokens go, and where they come from.

    Attributes:
      source: token at each of the P places, or N where there is none.
      target: place of each token, or P for padding.
      chunks: the documents of the M chunks that the places make up.
    """

    source: Int[Array, "B P"]
    target: Int[Array, "B N"]
    chunks: ChunkDocuments

    def lay_out(self, x: Shaped[Array, "B N ..."]) -> Shaped[Array, "B P ..."]:
        """Moves tokens to their places; empty places hold zeros."""
        return _take(x, self.source)

    def take_back(self, x: Shaped[Array, "B P ..."]) -> Shaped[Array, "B N ..."]:
        """Moves tokens from their places back into the row; padding gets zeros."""
        return _take(x, self.target)

    def decay(self, log_decay: LogDecay, num_tokens: int) -> ChunkDecay:
        """The decay of the chunks, in which empty places take no step."""
        batch, num_chunks = self.chunks.document.shape
        if log_decay.ndim == 3:
            log_decay = self.lay_out(log_decay)
            return split_decay(log_decay, None, log_decay.shape[1], num_chunks, log_decay.shape[1] // num_chunks)
        steps = (self.source < num_tokens).reshape(batch, num_chunks, 1, -1)
        return ChunkDecay(log_decay, jnp.cumsum(steps.astype(jnp.float32), axis=3))


def find_layout(
    segments: Segments | None, batch: int, num_tokens: int, num_documents: int, chunk: int, num_chunks: int
) -> DocumentLayout:
    """The layout of rows of at most S documents in M chunks of C tokens; N + S (C - 1) places are enough."""
    if segments is None:
        position = jnp.broadcast_to(jnp.arange(1, num_tokens + 1)[None], (batch, num_tokens))
        segments = Segments(position, jnp.zeros_like(position))
    position, index = segments
    rows = jnp.arange(batch)[:, None]
    real = jnp.diff(position, axis=1, prepend=0) > 0
    lengths = jnp.zeros((batch, num_documents), jnp.int32).at[rows, index].add(real, mode="drop")
    ends = jnp.cumsum(-(-lengths // chunk), axis=1)  # in chunks, of each document
    starts = ends + -lengths // chunk
    tokens_before = jnp.cumsum(lengths, axis=1) - lengths

    place = _at(starts, index) * chunk + position - 1 - _at(tokens_before, index)
    target = jnp.where(real & (index < num_documents), place, num_chunks * chunk)
    source = jnp.full((batch, num_chunks * chunk), num_tokens)
    source = source.at[rows, target].set(jnp.arange(num_tokens)[None], mode="drop")

    number = jnp.arange(num_chunks)[None]
    document = jnp.sum(ends[:, None] <= number[..., None], axis=2)
    used = document < num_documents
    first = used & (number == _at(starts, document))
    return DocumentLayout(source, target, ChunkDocuments(document, first, used & (number + 1 == _at(ends, document))))


def states_of(states: Float[Array, "B S ..."], document: Int[Array, "B M"]) -> Float[Array, "B M ..."]:
    """The state of each chunk's document; zeros for a chunk without one."""
    return _take(states, document)


def set_states(
    states: Float[Array, "B S ..."],
    document: Int[Array, "B M"],
    where: Bool[Array, "B M"],
    new: Float[Array, "B M ..."],
) -> Float[Array, "B S ..."]:
    """`states` with those of the chunks' documents replaced `where` it is asked for."""
    rows = jnp.arange(states.shape[0])[:, None]
    return states.at[rows, jnp.where(where, document, states.shape[1])].set(new, mode="drop")


def cross_chunks(
    state: Array,
    chunk_decay: Array,
    kv_sum: Array,
    new: tuple[Array, Array] | None,
    *,
    parallel: bool,
    reverse: bool = False,
) -> tuple[Array, Array]:
    """`scan_states` [b m g r k v], in which the chunks marked in `new` start from the states given there."""
    if new is not None:
        starts, states = new
        starts = starts[..., None, None]
        added = decay_and_add(states, chunk_decay[..., None, None], kv_sum)
        kv_sum = jnp.where(starts[..., None, None], added, kv_sum)
        chunk_decay = jnp.where(starts, -1.0, chunk_decay)
    before, after = scan_states(state, chunk_decay, kv_sum, reverse=reverse, parallel=parallel)
    return before if new is None else jnp.where(starts[..., None, None], states, before), after


def _take(x: Shaped[Array, "B N ..."], index: Int[Array, "B M"]) -> Shaped[Array, "B M ..."]:
    index = index.reshape(*index.shape, *[1] * (x.ndim - 2))
    return jnp.take_along_axis(x, index, axis=1, mode="fill", fill_value=0)


def _at(x: Int[Array, "B S"], index: Int[Array, "B M"]) -> Int[Array, "B M"]:
    return jnp.take_along_axis(x, jnp.minimum(index, x.shape[1] - 1), axis=1)
