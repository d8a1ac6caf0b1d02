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
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import (
    ChunkTokens,
    dot,
    head_groups,
    key_scores,
    outer,
    stack,
    stack_state,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import (
    ChunkWeights,
    DecayOperands,
    decay_and_add,
    decay_specs,
)


def forward_kernel(
    layout: Layout, q: Array, k: Array, v: Array, decay: DecayOperands, state: Array, *, save: bool
) -> Sequence[Array]:
    """Linear attention of q, k [B, N, Hq * K] and v [B, N, H * V], with states [B, K, H * V] float32.

    Returns:
      out [B, N, H * V] in v's dtype, the final state, and, if `save`, the state before each block
      [B, blocks, K, H * V] float32.
    """
    problem = layout.problem
    keys, values = layout.tokens(problem.key_dim, keys=True), layout.tokens(problem.value_dim)
    out_specs = [values, layout.state()]
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    if save:
        out_specs.append(layout.saved_states())
        out_shape.append(jax.ShapeDtypeStruct((state.shape[0], layout.num_blocks, *state.shape[1:]), jnp.float32))
    arrays = [x for x in decay if x is not None]
    return pl.pallas_call(
        functools.partial(_kernel, layout, len(arrays)),
        grid=layout.grid,
        in_specs=[*decay_specs(layout, decay), keys, keys, values, layout.state()],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM(layout.state_shape, jnp.float32)],
        compiler_params=layout.compiler_params,
        interpret=interpret_mode(),
        name="linear_attention",
    )(*arrays, q, k, v, state)


def _kernel(layout: Layout, num_decay: int, *refs) -> None:
    decay = DecayOperands(*refs[:num_decay], *[None] * (3 - num_decay))
    q_ref, k_ref, v_ref, first_state_ref, out_ref, last_state_ref, *saved_ref, state_ref = refs[num_decay:]

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = first_state_ref[0]

    for saved in saved_ref:
        saved[0, 0] = state_ref[...]

    for index in range(layout.chunks):
        tokens = ChunkTokens(layout, index, pl.program_id(2))
        weights = ChunkWeights(layout, decay, index, tokens.valid)
        for groups in itertools.batched(head_groups(layout), layout.stage):
            queries = [[tokens.load(q_ref, tile.lanes) for tile in group.keys] for group in groups]
            keys = [[tokens.load(k_ref, tile.lanes) for tile in group.keys] for group in groups]
            values = [tokens.load(v_ref, group.lanes) for group in groups]
            scores = key_scores(groups, queries, keys)
            scores = [
                (x * jnp.concatenate([weights.between(head) for head in group.heads], axis=1)).astype(v_ref.dtype)
                for x, group in zip(scores, groups, strict=True)
            ]
            for group, q, p, v in zip(groups, queries, scores, values, strict=True):
                state = state_ref[:, group.lanes]
                across = [
                    dot(x, stack_state(state, tile, group, v.dtype), (1, 0))
                    for x, tile in zip(q, group.keys, strict=True)
                ]
                out = dot(p, stack(v, group.heads), (1, 0)) + weights.q_decay(group.heads) * sum(across[1:], across[0])
                out_ref[0, tokens.rows, group.lanes] = out.astype(out_ref.dtype)
            for group, k, v in zip(groups, keys, values, strict=True):
                decayed = (v * weights.k_decay(group.heads)).astype(v.dtype)
                state_ref[:, group.lanes] = decay_and_add(
                    state_ref[:, group.lanes], weights.chunk_decay(group.heads), outer(k, decayed, group)
                )

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last_state_ref[0] = state_ref[...]
