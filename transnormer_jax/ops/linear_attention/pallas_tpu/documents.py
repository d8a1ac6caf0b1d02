"""The initial and final state of every document of a packed row, inside the forward kernel.

The kernel treats a row as one sequence: a document that starts inside a chunk starts from zero, and the state that
leaves the chunk is that of its last document. For each border inside the chunk this file adds what is missing: the
final state of the document that ends there, and what the initial state of the next one adds to its outputs and to the
state that leaves. So a border costs two of the four products of a chunk.
"""

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import head_groups, outer, read_state
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Chunk
from transnormer_jax.ops.linear_attention.segments import Segments


def document_borders(layout: Layout, segments: Segments) -> list[Array]:
    """Scalars for the kernel.

    Returns:
      The document before each chunk of a block and after the last, [B * blocks, 1, chunks + 1], and the first token of
      each document, [B, 1, S + 2], which is the end of the row for those that do not occur.
    """
    num_documents = layout.problem.max_segments or 1
    index = jnp.minimum(segments[1], num_documents - 1)
    before = jnp.pad(index, ((0, 0), (1, layout.padded_tokens - index.shape[1])), mode="edge").at[:, 0].set(0)
    before, after = before[:, : -1 : layout.chunk], before[:, layout.block :: layout.block]
    before = jnp.concatenate([before.reshape(-1, layout.chunks), after.reshape(-1, 1)], axis=1)
    starts = jnp.sum(index[:, None] < jnp.arange(num_documents + 2)[None, :, None], axis=2, dtype=jnp.int32)
    return [before[:, None], starts[:, None]]


def cross_borders(layout: Layout, chunk: Chunk, left: Array, right: Array, starts_ref, refs) -> None:
    """Adds what the borders between documents `left` and `right` inside the chunk change.

    Args:
      layout: that of the kernel.
      chunk: the chunk, of which everything else has been computed.
      left: the document before it.
      right: the document of its last token.
      starts_ref: the first token of each document.
      refs: of q, k, v, the initial states, the output, the final states, the state before the chunk, and that after it.
    """
    q_ref, k_ref, v_ref, initial_ref, out_ref, final_ref, before_ref, after_ref = refs
    token = jax.lax.broadcasted_iota(jnp.int32, (layout.chunk, LANES), 0)

    def cross(document: Array, _: None) -> None:
        start, end, next_end = (starts_ref[0, 0, document + i] - chunk.start for i in range(3))
        arrives = document == left
        for group in head_groups(layout):
            heads, lanes = group.heads, group.lanes
            k_decay = chunk.decay(heads, lambda i: chunk.at(i, end) - chunk.column(i), (token >= start) & (token < end))
            decayed = (chunk.load(v_ref, lanes) * k_decay).astype(v_ref.dtype)
            since_start = chunk.decay(
                heads, lambda i: chunk.at(i, end) - jnp.where(arrives, 0.0, chunk.at(i, start) + layout.border_step(i))
            )
            state = jnp.where(arrives, before_ref[:, lanes], initial_ref[0, document, :, lanes])
            final_ref[0, document, :, lanes] = since_start * state + outer(
                chunk.load_keys(k_ref, group), decayed, group
            )

            state = initial_ref[0, document + 1, :, lanes]
            q_decay = chunk.decay(
                heads,
                lambda i: chunk.column(i) - (chunk.at(i, end) + layout.border_step(i)),
                (token >= end) & (token < next_end),
            )
            out = q_decay * read_state(chunk.load_keys(q_ref, group), state, group, v_ref.dtype)
            out_ref[0, chunk.rows, lanes] = (out_ref[0, chunk.rows, lanes] + out).astype(out_ref.dtype)

            @pl.when(document + 1 == right)
            def _(heads=heads, lanes=lanes, state=state):
                since_end = chunk.decay(heads, lambda i: chunk.last(i) - (chunk.at(i, end) + layout.border_step(i)))
                after_ref[:, lanes] += since_end * state

    jax.lax.fori_loop(left, right, cross, None)
