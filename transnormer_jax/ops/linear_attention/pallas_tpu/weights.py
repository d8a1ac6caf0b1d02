"""Decay weights inside the kernels: those of `linear_attention/decay.py`, for one chunk and head at a time.

All follow from numbers c_t per token, counted from the border before the chunk: tokens times the rate of the head, or
the cumulative log decay of each head. A constant decay of rows without documents needs no array at all. Otherwise XLA
prepares rows [#B, blocks of heads or 1, 8k, N] of float32: 8 bytes per token and head.

A document border is one more step of `BORDER`, whose weight is 0 in float32. In half precision it is added to the
cumulative decay. In float32 this would cost the tokens after it their digits, so borders, and the whole part of very
strong steps, have rows of their own, in which the difference of two tokens without any between them is exactly 0.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.decay import FLOOR, token_steps
from transnormer_jax.ops.linear_attention.operands import LogDecay, Operands
from transnormer_jax.ops.linear_attention.pallas_tpu.layout import (
    BORDER,
    LANES,
    Layout,
    choose_layout,
    join_heads,
    join_state,
)
from transnormer_jax.ops.linear_attention.pallas_tpu.tile import Group, join
from transnormer_jax.ops.linear_attention.segments import Segments, find_segments

# A head without decay takes this rate, so that its product with -inf, where no weight is due, is -inf.
_SMALLEST_RATE = 1e-30
_LOG2_E = math.log2(math.e)
# Below it, in log2, a step leaves less than float32 can tell beside the weights of ordinary steps.
_LARGE = -29.0


class DecayOperands(NamedTuple):
    """What the kernels take for decay and documents: arrays, their blocks, or their refs."""

    rates: Any  # [H], positive factors on the rows, if these count tokens
    chunk_decay: Any  # [#B * blocks, 1, chunks * H], the factor on a state that crosses a chunk, minus 1
    # [#B, blocks of heads or 1, rows, padded N], since the border before the chunk: the cumulative log2 decay of each
    # head, or minus the number of tokens; then, if they are kept apart, the document borders. None if all chunks agree.
    rows: Any


def prepare(operands: Operands, chunk_size: int | None) -> tuple[Layout, DecayOperands, Operands]:
    """The layout of a call, its decay, and its operands with joined heads.

    Key heads that several heads share are read where they are if K is a multiple of 128, else they are repeated first.
    """
    q, k, v, log_decay, state, segments = operands
    if segments is None and state.ndim == 5:
        segments = find_segments(jnp.ones(v.shape[:2], jnp.int32))
    if q.shape[3] % LANES:
        q, k = (jnp.repeat(x, v.shape[2] // q.shape[2], axis=2) for x in (q, k))
    problem = Operands(q, k, v, log_decay, state, segments).problem
    layout = choose_layout(problem, target_hardware(), chunk_size)
    q, k, v = join_heads(q), join_heads(k), join_heads(v)
    decay = _decay_operands(layout, log_decay, segments)
    return layout, decay, Operands(q, k, v, log_decay, join_state(state), segments)


def _decay_operands(layout: Layout, log_decay: LogDecay, segments: Segments | None) -> DecayOperands:
    problem, pad = layout.problem, layout.padded_tokens - layout.problem.num_tokens

    def chunks(x: Array) -> Array:
        """Zeros take no step: [#B, N, #H] -> [#B, M, C, #H]."""
        return jnp.pad(x, ((0, 0), (0, pad), (0, 0))).reshape(x.shape[0], -1, layout.chunk, x.shape[2])

    rates, of_step = (jnp.ones(problem.num_heads), log_decay) if layout.per_token else (log_decay, jnp.ones(1))
    steps, borders = token_steps(of_step, segments, problem.num_tokens)
    steps, borders = chunks(steps), chunks(borders[..., None].astype(jnp.float32))

    if segments is None or problem.max_segments is None:
        across = steps.sum(2) * rates[None, None] + FLOOR * borders.sum(2)
    else:  # since the start of the last document
        index = chunks(segments[1][..., None])
        last = jnp.max(index, axis=2, keepdims=True)
        across = jnp.where(index == last, steps, 0).sum(2) * rates[None, None]
    chunk_decay = jnp.expm1(across).reshape(-1, 1, layout.chunks * problem.num_heads)
    rates = jnp.maximum(-rates * _LOG2_E, _SMALLEST_RATE)
    if not layout.num_rows:
        return DecayOperands(rates, chunk_decay, None)

    borders = BORDER * borders
    if layout.per_token:
        steps = _LOG2_E * steps
    if not layout.exact:
        parts = [steps + borders]
    elif layout.per_token:
        large = jnp.where(steps < _LARGE, jnp.round(steps), 0)
        parts = [steps - large, large + borders]
    else:
        parts = [-steps, borders]
    # XLA is slow to compile a cumsum for TPUs.
    lower = jnp.tril(jnp.ones((layout.chunk, layout.chunk)))
    parts = [jnp.einsum("ts,bmsh->bhmt", lower, x, precision=jax.lax.Precision.HIGHEST) for x in parts]
    shape = parts[0].shape[0], -1, layout.num_step_rows, layout.padded_tokens
    rows = jnp.concatenate([x.reshape(shape) for x in parts], axis=2)
    return DecayOperands(
        rates, chunk_decay, jnp.pad(rows, ((0, 0), (0, 0), (0, layout.num_rows - rows.shape[2]), (0, 0)))
    )


def decay_specs(layout: Layout, decay: DecayOperands, *, reverse: bool = False) -> DecayOperands:
    """The blocks of the operands."""
    scalars = layout.scalars(decay.chunk_decay, reverse=reverse)
    rows = layout.rows(layout.num_rows, per_head=layout.per_token, reverse=reverse)
    return DecayOperands(pl.BlockSpec(memory_space=pltpu.SMEM), scalars, None if decay.rows is None else rows)


class Chunk:
    """Chunk `index` of block `block` of the row: its tokens and their weights."""

    def __init__(self, layout: Layout, operands: DecayOperands, index: Array | int, block: Array):
        chunk = layout.chunk
        # Its rows of the block, and its first token.
        self.rows = pl.ds(index * chunk if isinstance(index, int) else pl.multiple_of(index * chunk, chunk), chunk)
        self.start = block * layout.block + index * chunk
        self._layout, self._operands = layout, operands
        self._first_chunk_decay = index * layout.problem.num_heads + pl.program_id(1) * layout.heads
        self._valid: Array | int = chunk
        if layout.ragged:
            self._valid = jnp.clip(layout.problem.num_tokens - self.start, 0, chunk)
        self._columns = dict[int, Array]()
        if operands.rows is not None:
            self._steps = operands.rows[0, 0, :, self.rows]
            self._last = self._steps[:, chunk - 1 :]
            self._transposed = self._steps.T
        else:
            # Differences of these need no `valid`: keys beyond the row are 0, and queries there are not written.
            self._steps = -1.0 - jax.lax.broadcasted_iota(jnp.int32, (1, chunk), 1).astype(jnp.float32)
            self._last = jnp.full((1, 1), -self._valid, jnp.float32)
            count = 1 + jax.lax.broadcasted_iota(jnp.int32, (chunk, LANES), 0)
            self._columns[0] = -jnp.minimum(count, self._valid).astype(jnp.float32)

    def load(self, ref: jax.Ref, lanes: slice) -> Array:
        """Its tokens from a block [1, T, lanes]: [C, lanes]. Beyond the row they are zero, not what memory contains."""
        x = ref[0, self.rows, lanes]
        if not self._layout.ragged:
            return x
        row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
        return jnp.where(row < self._valid, x, jnp.zeros_like(x))

    def load_keys(self, ref: jax.Ref, group: Group) -> list[Array]:
        """The tiles of keys or queries of a group."""
        return [self.load(ref, tile.lanes) for tile in group.keys]

    def between(self, head: int, *, transposed: bool = False) -> Array:
        """The weights between its tokens, [C, C]: rows are queries, columns keys; or the transpose."""
        chunk = self._layout.chunk
        query, key = (jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), axis) for axis in (0, 1))
        if transposed:
            query, key = key, query

        def steps(i: int) -> Array:
            column, row = _lanes(self.column(i), chunk), self._steps[i : i + 1]
            return jnp.where(query >= key, row - column if transposed else column - row, -jnp.inf)

        return jnp.exp2(self._exponent(range(head, head + 1), steps))

    def q_decay(self, heads: range) -> Array:
        """The weight of the state before the chunk at each token, [C, lanes of v]."""
        return self.decay(heads, self.column)

    def k_decay(self, heads: range) -> Array:
        """The weight of each token in the state after the chunk, [C, lanes of v]."""
        return self.decay(heads, lambda i: self.last(i) - self.column(i))

    def chunk_decay(self, heads: range) -> Array:
        """exp(.) - 1 of the decay of a state that crosses the chunk, [1, lanes of v]."""
        factors = [self._operands.chunk_decay[0, 0, self._first_chunk_decay + head] for head in heads]
        return join([jnp.full((1, len(heads) * self._layout.problem.value_dim), factor) for factor in factors])

    def decay(self, heads: range, steps: Callable[[int], Array], mask: Array | None = None) -> Array:
        """The decay over `steps(i)` [C or 1, 128] of row i, as [C or 1, lanes of v]; 0 where `mask` does not hold."""
        exponent = self._exponent(heads, steps)
        exponent = exponent if mask is None else jnp.where(mask, exponent, -jnp.inf)
        return _lanes(jnp.exp2(exponent), len(heads) * self._layout.problem.value_dim)

    def column(self, i: int) -> Array:
        """Row i as a column, the same in all lanes. Broadcast once for all weights: [C, 128]."""
        if i not in self._columns:
            self._columns[i] = jnp.broadcast_to(self._transposed[:, i : i + 1], (self._layout.chunk, LANES))
        return self._columns[i]

    def last(self, i: int) -> Array:
        """Row i at the last token, [1, 1]."""
        return self._last[i : i + 1]

    def before(self, end: Array) -> list[Array]:
        """Every row at the token before token `end` of the chunk, [1, 128] each; 0 before the first one."""
        token = jax.lax.broadcasted_iota(jnp.int32, self._steps.shape, 1)
        steps = jnp.sum(jnp.where(token == end - 1, self._steps, 0.0), axis=1, keepdims=True)
        return [jnp.broadcast_to(steps[i : i + 1], (1, LANES)) for i in range(steps.shape[0])]

    def _exponent(self, heads: range, steps: Callable[[int], Array]) -> Array:
        """The log2 of a weight, from the difference of two tokens in each row."""
        layout = self._layout
        if layout.per_token:
            return join([steps(head) + steps(layout.heads + head) if layout.exact else steps(head) for head in heads])
        rates = [self._operands.rates[pl.program_id(1) * layout.heads + head] for head in heads]
        rate = rates[0] if len(heads) == 1 else join([jnp.full((1, LANES), rate) for rate in rates])
        return rate * steps(0) + steps(1) if layout.problem.packed else rate * steps(0)


def _lanes(x: Array, size: int) -> Array:
    """Gives x [rows, 128], the same in all lanes of a head, with `size` lanes."""
    return x if x.shape[1] == size else jnp.concatenate([x] * -(-size // LANES), axis=1)[:, :size]
