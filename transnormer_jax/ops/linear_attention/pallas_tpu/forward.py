"""The forward kernel: one sweep over the tokens, with the states of a few heads in VMEM.

Per chunk and head, four matrix products: q k^T, scores v, q S and k^T v, each of them for all heads before the next
one, so that no product waits for the one before. The grid's last axis runs along time, so the state stays on the chip
from block to block, and each token's q, k and v are read once, its output written once.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.decay import decay_and_add
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.pallas_tpu.documents import cross_borders, document_borders
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout, split_state
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import (
    Group,
    head_groups,
    key_scores,
    outer,
    read_state,
    stack,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Chunk, decay_specs, prepare
from transnormer_jax.ops.precision import dot

# Groups whose products are interleaved: with more of them the scores no longer fit in registers.
_GROUPS_PER_STAGE = 4


def forward(operands: Operands, *, chunk_size: int | None, save: bool) -> tuple[Array, Array, Any]:
    """Linear attention; saves the states before each block, [B, blocks, K, H * V], and the final state.

    Nothing is saved with a state per document.
    """
    layout, decay, (q, k, v, _, state, segments) = prepare(operands, chunk_size)
    per_document = layout.problem.max_segments is not None
    borders = document_borders(layout, segments) if per_document and segments is not None else []
    keys, values = layout.tokens(layout.problem.key_dim, keys=True), layout.tokens(layout.problem.value_dim)
    states = layout.state(state)
    saved_spec = saved_type = None
    if save and not per_document:
        shape = state.shape[0], layout.num_blocks, *state.shape[1:]
        saved_spec, saved_type = layout.saved_states(), jax.ShapeDtypeStruct(shape, jnp.float32)
    out, final, saved = pl.pallas_call(
        functools.partial(_kernel, layout),
        grid=layout.grid,
        in_specs=[
            decay_specs(layout, decay),
            [layout.scalars(x, per_row=i == 1) for i, x in enumerate(borders)],
            keys,
            keys,
            values,
            states,
        ],
        out_specs=[values, states, saved_spec],
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)), saved_type],
        scratch_shapes=[] if per_document else [pltpu.VMEM((1, *layout.state_shape), jnp.float32)],
        compiler_params=layout.compiler_params,
        interpret=interpret_mode(),
        name="linear_attention",
    )(decay, borders, q, k, v, state)
    final = split_state(final, operands.state)
    return out.reshape(operands.v.shape), final, None if saved is None else (saved, final)


def _kernel(
    layout: Layout, decay, borders, q_ref, k_ref, v_ref, initial_ref, out_ref, final_ref, saved_ref, *scratch
) -> None:
    state_ref = scratch[0] if scratch else final_ref
    chunk_states = [state_ref.at[0]] * (layout.chunks + 1)
    if borders:
        chunk_states = [state_ref.at[0, borders[0][0, 0, i]] for i in range(layout.chunks + 1)]

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = initial_ref[...]

    if saved_ref is not None:
        saved_ref[0] = state_ref[...]

    for index in range(layout.chunks):
        chunk = Chunk(layout, decay, index, pl.program_id(2))
        for groups in itertools.batched(head_groups(layout), _GROUPS_PER_STAGE):
            _attend(chunk, groups, q_ref, k_ref, v_ref, out_ref, *chunk_states[index : index + 2])

    if borders:
        cross_borders(layout, decay, borders, q_ref, k_ref, v_ref, initial_ref, out_ref, state_ref)
    else:

        @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
        def _():
            final_ref[...] = state_ref[...]


def _attend(chunk: Chunk, groups: Sequence[Group], q_ref, k_ref, v_ref, out_ref, before_ref, after_ref) -> None:
    """Writes the outputs of a chunk, and takes the states from its left to its right border."""
    dtype = v_ref.dtype
    queries, keys = ([chunk.load_keys(ref, group) for group in groups] for ref in (q_ref, k_ref))
    values = [chunk.load(v_ref, group.lanes) for group in groups]
    scores = [
        (x * jnp.concatenate([chunk.between(head) for head in group.heads], axis=1)).astype(dtype)
        for x, group in zip(key_scores(groups, queries, keys), groups, strict=True)
    ]
    for group, q, x, v in zip(groups, queries, scores, values, strict=True):
        out = dot("cs,sv->cv", x, stack(v, group.heads))
        out += chunk.q_decay(group.heads) * read_state(q, before_ref[:, group.lanes], group, dtype)
        out_ref[0, chunk.rows, group.lanes] = out.astype(dtype)
    for group, k, v in zip(groups, keys, values, strict=True):
        kv_sum = outer(k, (v * chunk.k_decay(group.heads)).astype(dtype), group)
        after_ref[:, group.lanes] = decay_and_add(after_ref[:, group.lanes], chunk.chunk_decay(group.heads), kv_sum)
