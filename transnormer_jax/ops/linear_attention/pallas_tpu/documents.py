"""The initial and final state of every document of a packed row, inside the forward kernel.

The state of each document has its own slot. The sweep over the chunks reads the slot of the document before a
chunk and updates that of the chunk's last document, which contains its initial state if it starts there. For each
border inside a chunk this file adds what is missing: the final state of the document that ends there, and what the
initial state of the next one adds to its outputs. So a border costs two of the four products of a chunk.
"""

import itertools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import head_groups, outer, read_state
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Chunk
from transnormer_jax.ops.linear_attention.segments import Segments

_GROUPS_PER_STAGE = 2


def document_borders(layout: Layout, segments: Segments) -> list[Array]:
    """Scalars for the kernel.

    Returns:
      The document before each chunk of a block and after the last, [B * blocks, 1, chunks + 1], and the first token of
      each document, [B, 1, S + 1], which is the end of the row for those that do not occur.
    """
    num_documents = layout.problem.max_segments or 1
    index = jnp.minimum(segments[1], num_documents - 1)
    before = jnp.pad(index, ((0, 0), (1, layout.padded_tokens - index.shape[1])), mode="edge").at[:, 0].set(0)
    before, after = before[:, : -1 : layout.chunk], before[:, layout.block :: layout.block]
    before = jnp.concatenate([before.reshape(-1, layout.chunks), after.reshape(-1, 1)], axis=1)
    starts = jnp.sum(index[:, None] < jnp.arange(num_documents + 1)[None, :, None], axis=2, dtype=jnp.int32)
    return [before[:, None], starts[:, None]]


def cross_borders(layout: Layout, decay, borders, q_ref, k_ref, v_ref, initial_ref, out_ref, state_ref) -> None:
    """Completes the documents that end in this block, and the outputs of those that start in it."""
    documents_ref, starts_ref = borders
    dtype = v_ref.dtype
    token = jax.lax.broadcasted_iota(jnp.int32, (layout.chunk, LANES), 0)

    def cross(document: Array, _: None) -> None:
        border = starts_ref[0, 0, document + 1]
        chunk = Chunk(layout, decay, (border - pl.program_id(2) * layout.block) // layout.chunk, pl.program_id(2))
        start, end = (starts_ref[0, 0, document + i] - chunk.start for i in range(2))
        arrives = (start < 0) | (document == 0)  # at the chunk with its state
        at_end = chunk.before(end)
        since = [jnp.where(arrives, 0.0, x + layout.border_step(i)) for i, x in enumerate(chunk.before(start))]
        after_border = [x + layout.border_step(i) for i, x in enumerate(at_end)]
        ending, starting = (token >= start) & (token < end), token >= end  # the next border ends it
        for groups in itertools.batched(head_groups(layout), _GROUPS_PER_STAGE):
            outs, kv_sums = [], []
            for group in groups:
                state = initial_ref[0, document + 1, :, group.lanes]
                outs.append(read_state(chunk.load_keys(q_ref, group), state, group, dtype))
                k_decay = chunk.decay(group.heads, lambda i: at_end[i] - chunk.column(i), ending)
                decayed = (chunk.load(v_ref, group.lanes) * k_decay).astype(dtype)
                kv_sums.append(outer(chunk.load_keys(k_ref, group), decayed, group))
            for group, out, kv_sum in zip(groups, outs, kv_sums, strict=True):
                q_decay = chunk.decay(group.heads, lambda i: chunk.column(i) - after_border[i], starting)
                out_ref[0, chunk.rows, group.lanes] += (q_decay * out).astype(dtype)
                state_decay = chunk.decay(group.heads, lambda i: at_end[i] - since[i])
                state = state_decay * state_ref[0, document, :, group.lanes]
                state_ref[0, document, :, group.lanes] = state + kv_sum

    jax.lax.fori_loop(documents_ref[0, 0, 0], documents_ref[0, 0, layout.chunks], cross, None)
