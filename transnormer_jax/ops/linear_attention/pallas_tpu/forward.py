"""The forward kernel: one sweep over the tokens, with the states of a few heads in VMEM.

Per chunk and head, four matrix products: q k^T, scores v, q S and k^T v, each of them for all heads before the next
one, so that no product waits for the one before. The grid's last axis runs along time, so the state stays on the chip
from block to block, and each token's q, k and v are read once, its output written once.
"""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.decay import decay_and_add
from transnormer_jax.ops.linear_attention.pallas_tpu.documents import cross_borders
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import (
    Group,
    dot,
    head_groups,
    key_scores,
    outer,
    read_state,
    stack,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Chunk, DecayOperands, decay_specs

# Groups whose products are interleaved: with more of them the scores no longer fit in registers.
_GROUPS_PER_STAGE = 4


def forward_kernel(
    layout: Layout,
    q: Array,
    k: Array,
    v: Array,
    decay: DecayOperands,
    state: Array,
    borders: Sequence[Array],
    *,
    save: bool,
) -> Sequence[Array]:
    """Linear attention of q, k [B, N, Hq * K] and v [B, N, H * V], with states [B, K, H * V] float32.

    With `borders` of documents, states are [B, S, K, H * V].

    Returns:
      out [B, N, H * V] in v's dtype, the final state, and, if `save`, the state before each block
      [B, blocks, K, H * V] float32.
    """
    problem = layout.problem
    keys, values, states = (
        layout.tokens(problem.key_dim, keys=True),
        layout.tokens(problem.value_dim),
        layout.state(state),
    )
    out_specs, out_shape = [values, states], [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    if save:
        out_specs.append(layout.saved_states())
        out_shape.append(jax.ShapeDtypeStruct((state.shape[0], layout.num_blocks, *state.shape[1:]), jnp.float32))
    arrays = [x for x in decay if x is not None]
    return pl.pallas_call(
        functools.partial(_kernel, layout, len(arrays)),
        grid=layout.grid,
        in_specs=[
            *decay_specs(layout, decay),
            *(layout.scalars(x, per_row=i == 1) for i, x in enumerate(borders)),
            keys,
            keys,
            values,
            states,
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[] if borders else [pltpu.VMEM((1, *layout.state_shape), jnp.float32)],
        compiler_params=layout.compiler_params,
        interpret=interpret_mode(),
        name="linear_attention",
    )(*arrays, *borders, q, k, v, state)


def _kernel(layout: Layout, num_decay: int, *refs) -> None:
    decay = DecayOperands(*refs[:num_decay], *[None] * (3 - num_decay))
    others = [*refs[num_decay:]]
    per_document = layout.problem.max_segments is not None
    if per_document:
        documents_ref, starts_ref, *others = others
        q_ref, k_ref, v_ref, initial_ref, out_ref, state_ref = others
        saved_ref, chunk_states = [], [state_ref.at[0, documents_ref[0, 0, i]] for i in range(layout.chunks + 1)]
    else:
        q_ref, k_ref, v_ref, initial_ref, out_ref, final_ref, *saved_ref, state_ref = others
        chunk_states = [state_ref.at[0]] * (layout.chunks + 1)

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = initial_ref[...]

    for saved in saved_ref:
        saved[0] = state_ref[...]

    for index in range(layout.chunks):
        chunk = Chunk(layout, decay, index, pl.program_id(2))
        for groups in itertools.batched(head_groups(layout), _GROUPS_PER_STAGE):
            _attend(chunk, groups, q_ref, k_ref, v_ref, out_ref, *chunk_states[index : index + 2])

    if per_document:
        left, right = (documents_ref[0, 0, i] for i in (0, layout.chunks))
        cross_borders(layout, decay, left, right, starts_ref, others)
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
        out = dot(x, stack(v, group.heads), (1, 0))
        out += chunk.q_decay(group.heads) * read_state(q, before_ref[:, group.lanes], group, dtype)
        out_ref[0, chunk.rows, group.lanes] = out.astype(dtype)
    for group, k, v in zip(groups, keys, values, strict=True):
        kv_sum = outer(k, (v * chunk.k_decay(group.heads)).astype(dtype), group)
        after_ref[:, group.lanes] = decay_and_add(after_ref[:, group.lanes], chunk.chunk_decay(group.heads), kv_sum)
