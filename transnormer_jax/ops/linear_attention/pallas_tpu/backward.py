"""The backward kernel: dq, dk and dv in one sweep against the direction of the state.

The forward kernel saved the state that arrives at each block. Inside a block the states between its chunks are computed
again and kept in VMEM. Then the sweep meets each chunk with the state S on its one side and the gradient dS of the
state on its other side:

    dq = (do v^T * D) k    + head * (do S^T)
    dk = (do v^T * D)^T q  + tail * (v dS^T)
    dv = (q k^T * D)^T do  + tail * (k dS)
    dS <- (dS + fade * dS) + q^T (head * do)

with the weights D, head, tail and fade of `linear_attention/weights.py`.
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
from transnormer_jax.ops.linear_attention.pallas_tpu import grid
from transnormer_jax.ops.linear_attention.pallas_tpu.chunk import Chunk, ScalarRefs
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import Group, dot, head_groups, join, only, outer, stack
from transnormer_jax.ops.linear_attention.segments import Segments


def backward(
    layout: Layout,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    segments: Segments | None,
    states: Array,
    d_out: Array,
    d_state: Array,
) -> Sequence[Array]:
    """Gradients of `forward` with this layout.

    Args:
      layout: that of the forward kernel.
      q: [B, N, H * K].
      k: [B, N, H * K].
      v: [B, N, H * V].
      log_decay: [H] float32.
      segments: the places of the tokens.
      states: [B, blocks, K, H * V] float32, as saved.
      d_out: [B, N, H * V].
      d_state: [B, K, H * V] float32.

    Returns:
      dq, dk, dv, and the gradient of the state that arrived.
    """
    walk = layout.opposite
    scalars = grid.scalars(walk, log_decay, segments)
    keys, values, state = grid.keys(walk), grid.values(walk), grid.state(walk)
    return pl.pallas_call(
        functools.partial(_kernel, layout, segments is not None),
        grid=layout.grid,
        in_specs=[*scalars.specs, keys, keys, values, values, grid.states(walk), state],
        out_specs=[keys, keys, values, state],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, d_state)],
        scratch_shapes=[
            pltpu.VMEM(layout.state_shape, jnp.float32),
            pltpu.VMEM((layout.chunks, *layout.state_shape), jnp.float32),
        ],
        compiler_params=grid.compiler_params(layout),
        interpret=interpret_mode(),
        name="linear_attention_reverse_backward" if layout.reverse else "linear_attention_backward",
    )(*scalars.arrays, q, k, v, d_out, states, d_state)


def _kernel(layout: Layout, documents: bool, rates_ref, fades_ref, *refs) -> None:
    places_ref, refs = (refs[0], refs[1:]) if documents else (None, refs)
    *operand_refs, saved_ref, d_last_state_ref, dq_ref, dk_ref, dv_ref, d_first_state_ref, d_state_ref, state_ref = refs
    scalars = ScalarRefs(rates_ref, fades_ref, places_ref)
    chunks = {index: Chunk(layout, layout.opposite, index, scalars) for index in layout.chunk_order}

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_state_ref[...] = d_last_state_ref[0]

    _recompute_states(layout, chunks, operand_refs, saved_ref, state_ref)
    for index in layout.opposite.chunk_order:
        for group in head_groups(layout):
            state = state_ref[index, :, group.lanes]
            _sweep(chunks[index], group, operand_refs, state, d_state_ref, (dq_ref, dk_ref, dv_ref))

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        d_first_state_ref[0] = d_state_ref[...]


def _recompute_states(layout: Layout, chunks: dict[int, Chunk], operand_refs, saved_ref, state_ref) -> None:
    """Fills `state_ref` [chunks, K, lanes] with the state that arrives at each chunk."""
    _, k_ref, v_ref, _ = operand_refs
    state_ref[layout.chunk_order[0]] = saved_ref[0, 0]
    for index, following in itertools.pairwise(layout.chunk_order):
        chunk = chunks[index]
        for group in head_groups(layout):
            v = chunk.load(v_ref, group.lanes)
            faded = (v * chunk.tail(group.heads, v.shape[1])).astype(v.dtype)
            written = outer([chunk.load(k_ref, block.lanes) for block in group.keys], faded, group)
            state_ref[following, :, group.lanes] = chunk.pass_on(state_ref[index, :, group.lanes], written, group.heads)


def _sweep(chunk: Chunk, group: Group, operand_refs, state: Array, d_state_ref, gradient_refs) -> None:
    """Writes dq, dk and dv of a chunk and a group of heads, and takes `d_state_ref` to the other side of the chunk."""
    q_ref, k_ref, v_ref, d_out_ref = operand_refs
    dq_ref, dk_ref, dv_ref = gradient_refs
    v, d_out = chunk.load(v_ref, group.lanes), chunk.load(d_out_ref, group.lanes)
    queries = [chunk.load(q_ref, block.lanes) for block in group.keys]
    d_state = d_state_ref[:, group.lanes]

    dv_within, dv_across = [], []
    for block, q in zip(group.keys, queries, strict=True):
        k = chunk.load(k_ref, block.lanes)
        dq, dk = [], []
        for head in block.heads:
            weights = chunk.intra(head)
            scores = (dot(only(q, head, block.heads), k, (1, 1)) * weights).astype(v.dtype)
            d_scores = (dot(only(d_out, head, group.heads), v, (1, 1)) * weights).astype(v.dtype)
            dq.append(dot(d_scores, k, (1, 0)))
            dk.append(dot(d_scores, q, (0, 0)))
            dv_within.append(dot(scores, d_out, (0, 0)))
        arriving, d_leaving = (stack(x, block, group, v.dtype) for x in (state, d_state))
        dq_all = join(dq) + chunk.head(block.heads, k.shape[1]) * dot(d_out, arriving, (1, 1))
        dk_all = join(dk) + chunk.tail(block.heads, k.shape[1]) * dot(v, d_leaving, (1, 1))
        dq_ref[0, chunk.rows, block.lanes] = dq_all.astype(dq_ref.dtype)
        dk_ref[0, chunk.rows, block.lanes] = dk_all.astype(dk_ref.dtype)
        dv_across.append(dot(k, d_leaving, (1, 0)))
    dv = join(dv_within) + chunk.tail(group.heads, v.shape[1]) * sum(dv_across[1:], dv_across[0])
    dv_ref[0, chunk.rows, group.lanes] = dv.astype(dv_ref.dtype)
    faded = (d_out * chunk.head(group.heads, v.shape[1])).astype(v.dtype)
    d_state_ref[:, group.lanes] = chunk.pass_on(d_state, outer(queries, faded, group), group.heads)
