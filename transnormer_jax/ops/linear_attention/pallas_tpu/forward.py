"""The forward kernel: one sweep over the tokens, with the states of a few heads in VMEM.

Per chunk and head, four matrix products: q k^T, scores v, q S and k^T v. The grid's last axis runs along time, so the
state stays on the chip from block to block, and each token's q, k and v are read once, its output written once.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.pallas_tpu import grid
from transnormer_jax.ops.linear_attention.pallas_tpu.chunk import Chunk, ScalarRefs
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import dot, head_groups, join, only, outer, stack
from transnormer_jax.ops.linear_attention.segments import Segments


def forward(
    layout: Layout,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Array,
    segments: Segments | None,
    *,
    save: bool,
) -> Sequence[Array]:
    """Linear attention of q, k [B, N, H * K] and v [B, N, H * V], with states [B, K, H * V] float32.

    Returns:
      out [B, N, H * V] in v's dtype, the state at the other end, and, if `save`, the state that arrives at each block
      [B, blocks, K, H * V] float32.
    """
    scalars = grid.scalars(layout, log_decay, segments)
    out_specs = [grid.values(layout), grid.state(layout)]
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (v, state)]
    if save:
        out_specs.append(grid.states(layout))
        out_shape.append(jax.ShapeDtypeStruct((state.shape[0], layout.num_blocks, *state.shape[1:]), jnp.float32))
    return pl.pallas_call(
        functools.partial(_kernel, layout, segments is not None, save),
        grid=layout.grid,
        in_specs=[*scalars.specs, grid.keys(layout), grid.keys(layout), grid.values(layout), grid.state(layout)],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[pltpu.VMEM(layout.state_shape, jnp.float32)],
        compiler_params=grid.compiler_params(layout),
        interpret=interpret_mode(),
        name="linear_attention_reverse" if layout.reverse else "linear_attention",
    )(*scalars.arrays, q, k, v, state)


def _kernel(layout: Layout, documents: bool, save: bool, rates_ref, fades_ref, *refs) -> None:
    places_ref, refs = (refs[0], refs[1:]) if documents else (None, refs)
    q_ref, k_ref, v_ref, first_state_ref, out_ref, last_state_ref, *saved_ref, state_ref = refs
    scalars = ScalarRefs(rates_ref, fades_ref, places_ref)

    @pl.when(pl.program_id(2) == 0)
    def _():
        state_ref[...] = first_state_ref[0]

    if save:
        saved_ref[0][0, 0] = state_ref[...]

    for index in layout.chunk_order:
        chunk = Chunk(layout, layout, index, scalars)
        for group in head_groups(layout):
            v = chunk.load(v_ref, group.lanes)
            keys = [chunk.load(k_ref, block.lanes) for block in group.keys]
            state = state_ref[:, group.lanes]
            within, across = [], []
            for block, k in zip(group.keys, keys, strict=True):
                q = chunk.load(q_ref, block.lanes)
                for head in block.heads:
                    scores = dot(only(q, head, block.heads), k, (1, 1)) * chunk.intra(head)
                    within.append(dot(scores.astype(v.dtype), v, (1, 0)))
                across.append(dot(q, stack(state, block, group, v.dtype), (1, 0)))
            out = join(within) + chunk.head(group.heads, v.shape[1]) * sum(across[1:], across[0])
            out_ref[0, chunk.rows, group.lanes] = out.astype(out_ref.dtype)
            faded = (v * chunk.tail(group.heads, v.shape[1])).astype(v.dtype)
            state_ref[:, group.lanes] = chunk.pass_on(state, outer(keys, faded, group), group.heads)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        last_state_ref[0] = state_ref[...]
