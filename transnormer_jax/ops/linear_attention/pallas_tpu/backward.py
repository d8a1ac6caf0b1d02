"""The backward kernel: dq, dk and dv in one sweep from the last token to the first.

The forward kernel saved the state before each block. Inside a block the states between its chunks are computed again
and kept in VMEM. Then the sweep has at each chunk the state S before it and the gradient dS of the state after it:

    dq = (do v^T * D) k    + (q_decay do) S^T
    dk = (do v^T * D)^T q  + (k_decay v) dS^T
    dv = (q k^T * D)^T do  + k_decay (k dS)
    dS <- decay_and_add(dS, chunk_decay, q^T (q_decay do))

with the weights D = intra, q_decay, k_decay and chunk_decay of `linear_attention/decay.py`. Scores are computed
transposed, as dk and dv take them; only d_scores is needed both ways. Each product is issued for all heads before the
next one.

The gradient of the cumulative log decay of a token is dc = sum_K(q dq - k dk), that of a chunk's border <S, dS>.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.decay import decay_and_add
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import (
    Group,
    dot,
    head_groups,
    head_sums,
    key_scores,
    outer,
    stack,
    stack_state,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import (
    Chunk,
    DecayOperands,
    decay_specs,
)


def backward_kernel(
    layout: Layout,
    q: Array,
    k: Array,
    v: Array,
    decay: DecayOperands,
    states: Array,
    d_out: Array,
    d_state: Array,
    *,
    decay_gradient: bool,
) -> Sequence[Array]:
    """Gradients of `forward_kernel` with this layout, which saved `states`.

    Returns:
      dq, dk, dv, the gradient of the initial state, and, if `decay_gradient`, float32
      [B, blocks of heads, rows, padded N]: dc of each head, then <S, dS> of each head at the left border of the
      token's chunk. The rows after these are not written.
    """
    problem = layout.problem
    keys = layout.tokens(problem.key_dim, keys=True, reverse=True)
    values = layout.tokens(problem.value_dim, reverse=True)
    out_specs = [keys, keys, values, layout.state(d_state)]
    out_shape = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, d_state)]
    if decay_gradient:
        shape = problem.batch, problem.num_heads // layout.heads, layout.num_gradient_rows, layout.padded_tokens
        out_specs.append(layout.rows(layout.num_gradient_rows, reverse=True))
        out_shape.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    arrays = [x for x in decay if x is not None]
    return pl.pallas_call(
        functools.partial(_kernel, layout, len(arrays)),
        grid=layout.grid,
        in_specs=[
            *decay_specs(layout, decay, reverse=True),
            keys,
            keys,
            values,
            values,
            layout.saved_states(reverse=True),
            layout.state(d_state),
        ],
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM(layout.state_shape, jnp.float32),
            pltpu.VMEM((layout.chunks, *layout.state_shape), jnp.float32),
        ],
        compiler_params=layout.compiler_params,
        interpret=interpret_mode(),
        name="linear_attention_backward",
    )(*arrays, q, k, v, d_out, states, d_state)


def _kernel(layout: Layout, num_decay: int, *refs) -> None:
    decay = DecayOperands(*refs[:num_decay], *[None] * (3 - num_decay))
    *operand_refs, saved_ref, d_last_state_ref = refs[num_decay : num_decay + 6]
    *gradient_refs, d_state_ref, state_ref = refs[num_decay + 6 :]
    d_first_state_ref = gradient_refs.pop(3)

    @pl.when(pl.program_id(2) == 0)
    def _():
        d_state_ref[...] = d_last_state_ref[0]

    block = pl.num_programs(2) - 1 - pl.program_id(2)
    chunks = [Chunk(layout, decay, index, block) for index in range(layout.chunks)]

    state_ref[0] = saved_ref[0, 0]
    for index, chunk in enumerate(chunks[:-1]):
        for group in head_groups(layout):
            state = state_ref[index, :, group.lanes]
            state_ref[index + 1, :, group.lanes] = _next_state(chunk, group, operand_refs, state)
    for index, chunk in reversed([*enumerate(chunks)]):
        _sweep(chunk, head_groups(layout), operand_refs, state_ref.at[index], d_state_ref, gradient_refs)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        d_first_state_ref[0] = d_state_ref[...]


def _next_state(chunk: Chunk, group: Group, operand_refs, state: Array) -> Array:
    _, k_ref, v_ref, _ = operand_refs
    decayed = (chunk.load(v_ref, group.lanes) * chunk.k_decay(group.heads)).astype(v_ref.dtype)
    return decay_and_add(state, chunk.chunk_decay(group.heads), outer(chunk.load_keys(k_ref, group), decayed, group))


def _sweep(chunk: Chunk, groups: Sequence[Group], operand_refs, state_ref, d_state_ref, gradient_refs) -> None:
    """Writes the gradients of a chunk, and takes `d_state_ref` from its right to its left border."""
    q_ref, k_ref, v_ref, d_out_ref = operand_refs
    dq_ref, dk_ref, dv_ref, *decay_gradient_ref = gradient_refs
    dtype = v_ref.dtype
    queries, keys = ([chunk.load_keys(ref, group) for group in groups] for ref in (q_ref, k_ref))
    values, d_outs = ([chunk.load(ref, group.lanes) for group in groups] for ref in (v_ref, d_out_ref))

    # Transposed: rows are keys, columns queries, the heads of a group side by side.
    scores, d_scores = [], []
    for group, x, v, d_out in zip(groups, key_scores(groups, keys, queries), values, d_outs, strict=True):
        intra = jnp.concatenate([chunk.between(head, transposed=True) for head in group.heads], axis=1)
        scores.append((x * intra).astype(dtype))
        d_scores.append((dot(v, stack(d_out, group.heads), (1, 1)) * intra).astype(dtype))

    dc, borders = list[Array](), list[Array]()
    key_gradients = dict[slice, tuple[Any, Any]]()  # summed over the heads that share a key head
    decayed_d_outs = []
    for i, group in enumerate(groups):
        v, d_out = values[i], d_outs[i]
        state, d_state = state_ref[:, group.lanes], d_state_ref[:, group.lanes]
        k_decay = chunk.k_decay(group.heads)
        decayed_v, decayed_d_out = (v * k_decay).astype(dtype), (d_out * chunk.q_decay(group.heads)).astype(dtype)
        decayed_d_outs.append(decayed_d_out)
        dv_across = []
        for j, (tile, q, k) in enumerate(zip(group.keys, queries[i], keys[i], strict=True)):
            before, after = (stack_state(x, tile, group, dtype) for x in (state, d_state))
            by_key = jnp.split(d_scores[i], len(group.keys), axis=1)[j]
            by_query = jnp.concatenate([x.T for x in jnp.split(by_key, len(tile.heads), axis=1)], axis=1)
            dq = dot(by_query, stack(k, tile.heads), (1, 0)) + dot(decayed_d_out, before, (1, 1))
            dk = dot(by_key, stack(q, tile.heads), (1, 0)) + dot(decayed_v, after, (1, 1))
            dv_across.append(dot(k, after, (1, 0)))
            if decay_gradient_ref:
                dc += head_sums(q * dq - k * dk, len(tile.heads))
            dq_others, dk_others = key_gradients.get(tile.lanes, (0, 0))
            key_gradients[tile.lanes] = dq_others + dq, dk_others + dk
        dv = dot(scores[i], stack(d_out, group.heads), (1, 0)) + k_decay * sum(dv_across[1:], dv_across[0])
        dv_ref[0, chunk.rows, group.lanes] = dv.astype(dtype)
    for lanes, sums in key_gradients.items():
        for ref, x in zip((dq_ref, dk_ref), sums, strict=True):
            ref[0, chunk.rows, lanes] = x.astype(dtype)

    for group, queries_of_group, d_out in zip(groups, queries, decayed_d_outs, strict=True):
        d_state = d_state_ref[:, group.lanes]
        d_state = decay_and_add(d_state, chunk.chunk_decay(group.heads), outer(queries_of_group, d_out, group))
        d_state_ref[:, group.lanes] = d_state
        if decay_gradient_ref:
            borders += head_sums(jnp.sum(state_ref[:, group.lanes] * d_state, axis=0, keepdims=True), len(group.heads))
    for ref in decay_gradient_ref:
        columns = jnp.concatenate([*dc, *(jnp.broadcast_to(x, dc[0].shape) for x in borders)], axis=1)
        ref[0, 0, : columns.shape[1], chunk.rows] = columns.T
