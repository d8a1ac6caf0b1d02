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
from jaxtyping import Float

from transnormer_jax.ops.hardware import interpret_mode
from transnormer_jax.ops.linear_attention.decay import decay_and_add
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout, join_heads, join_state, split_state
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import (
    Group,
    head_groups,
    head_sums,
    key_scores,
    outer,
    stack,
    stack_state,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import Chunk, decay_specs, prepare
from transnormer_jax.ops.precision import dot


def backward(
    operands: Operands,
    saved: tuple[Array, Array],
    d_out: Float[Array, "B N H V"],
    d_final: Float[Array, "B H K V"],
    *,
    decay_gradient: bool,
    chunk_size: int | None,
) -> Gradients:
    """All gradients; not with a state per document."""
    layout, decay, (q, k, v, *_) = prepare(operands, chunk_size)
    problem, (states, final) = layout.problem, saved
    keys = layout.tokens(problem.key_dim, keys=True, reverse=True)
    values = layout.tokens(problem.value_dim, reverse=True)
    d_state = join_state(d_final)
    rows_spec = rows_type = None
    if decay_gradient:
        shape = problem.batch, problem.num_heads // layout.heads, layout.num_gradient_rows, layout.padded_tokens
        rows_spec = layout.rows(layout.num_gradient_rows, reverse=True)
        rows_type = jax.ShapeDtypeStruct(shape, jnp.float32)
    dq, dk, dv, d_initial, rows = pl.pallas_call(
        functools.partial(_kernel, layout),
        grid=layout.grid,
        in_specs=[
            decay_specs(layout, decay, reverse=True),
            [keys, keys, values, values],
            layout.saved_states(reverse=True),
            layout.state(d_state),
        ],
        out_specs=[keys, keys, values, layout.state(d_state), rows_spec],
        out_shape=[*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, v, d_state)), rows_type],
        scratch_shapes=[
            pltpu.VMEM(layout.state_shape, jnp.float32),
            pltpu.VMEM((layout.chunks, *layout.state_shape), jnp.float32),
        ],
        compiler_params=layout.compiler_params,
        interpret=interpret_mode(),
        name="linear_attention_backward",
    )(decay, [q, k, v, join_heads(d_out)], states, d_state)
    d_steps = _d_steps(layout, rows, jnp.sum(final * d_final, axis=(2, 3))) if decay_gradient else None
    batch, num_tokens, key_heads, key_dim = operands.q.shape
    if dq.size > operands.q.size:  # of repeated heads
        repeated = batch, num_tokens, key_heads, -1, key_dim
        dq, dk = (x.reshape(repeated).astype(jnp.float32).sum(3).astype(x.dtype) for x in (dq, dk))
    dq, dk = (x.reshape(operands.q.shape) for x in (dq, dk))
    return Gradients(dq, dk, dv.reshape(d_out.shape), d_steps, split_state(d_initial, d_final))


def _d_steps(layout: Layout, rows: Float[Array, "B G R N"], last_border: Float[Array, "B H"]) -> Array:
    """The gradient of each token's log decay [B, N, H]: that of every later c_t in its chunk, and of the border.

    `rows` are dc of each head, then <S, dS> of each head at the left border of the token's chunk.
    """
    batch, heads = rows.shape[0], layout.heads
    rows = rows[:, :, : 2 * heads].reshape(batch, -1, 2, heads, layout.padded_tokens // layout.chunk, layout.chunk)
    dc, borders = rows[:, :, 0], rows[:, :, 1, ..., 0]
    borders = jnp.concatenate([borders[..., 1:], last_border.reshape(*borders.shape[:-1], 1)], axis=-1)
    upper = jnp.triu(jnp.ones((layout.chunk, layout.chunk)))
    steps = jnp.einsum("ts,bghms->bghmt", upper, dc, precision=jax.lax.Precision.HIGHEST) + borders[..., None]
    return steps.reshape(batch, layout.problem.num_heads, -1).swapaxes(1, 2)[:, : layout.problem.num_tokens]


def _kernel(
    layout: Layout,
    decay,
    operand_refs,
    saved_ref,
    d_last_state_ref,
    dq_ref,
    dk_ref,
    dv_ref,
    d_first_state_ref,
    rows_ref,
    d_state_ref,
    state_ref,
) -> None:
    gradient_refs = dq_ref, dk_ref, dv_ref, rows_ref

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
    dq_ref, dk_ref, dv_ref, rows_ref = gradient_refs
    dtype = v_ref.dtype
    queries, keys = ([chunk.load_keys(ref, group) for group in groups] for ref in (q_ref, k_ref))
    values, d_outs = ([chunk.load(ref, group.lanes) for group in groups] for ref in (v_ref, d_out_ref))

    # Transposed: rows are keys, columns queries, the heads of a group side by side.
    scores, d_scores = [], []
    for group, x, v, d_out in zip(groups, key_scores(groups, keys, queries), values, d_outs, strict=True):
        intra = jnp.concatenate([chunk.between(head, transposed=True) for head in group.heads], axis=1)
        scores.append((x * intra).astype(dtype))
        d_scores.append((dot("sv,cv->sc", v, stack(d_out, group.heads)) * intra).astype(dtype))

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
            dq = dot("cs,sk->ck", by_query, stack(k, tile.heads)) + dot("cv,kv->ck", decayed_d_out, before)
            dk = dot("sc,ck->sk", by_key, stack(q, tile.heads)) + dot("sv,kv->sk", decayed_v, after)
            dv_across.append(dot("sk,kv->sv", k, after))
            if rows_ref is not None:
                dc += head_sums(q * dq - k * dk, len(tile.heads))
            dq_others, dk_others = key_gradients.get(tile.lanes, (0, 0))
            key_gradients[tile.lanes] = dq_others + dq, dk_others + dk
        dv = dot("sc,cv->sv", scores[i], stack(d_out, group.heads)) + k_decay * sum(dv_across[1:], dv_across[0])
        dv_ref[0, chunk.rows, group.lanes] = dv.astype(dtype)
    for lanes, sums in key_gradients.items():
        for ref, x in zip((dq_ref, dk_ref), sums, strict=True):
            ref[0, chunk.rows, lanes] = x.astype(dtype)

    for group, queries_of_group, d_out in zip(groups, queries, decayed_d_outs, strict=True):
        d_state = d_state_ref[:, group.lanes]
        d_state = decay_and_add(d_state, chunk.chunk_decay(group.heads), outer(queries_of_group, d_out, group))
        d_state_ref[:, group.lanes] = d_state
        if rows_ref is not None:
            borders += head_sums(jnp.sum(state_ref[:, group.lanes] * d_state, axis=0, keepdims=True), len(group.heads))
    if rows_ref is not None:
        columns = jnp.concatenate([*dc, *(jnp.broadcast_to(x, dc[0].shape) for x in borders)], axis=1)
        rows_ref[0, 0, : columns.shape[1], chunk.rows] = columns.T
