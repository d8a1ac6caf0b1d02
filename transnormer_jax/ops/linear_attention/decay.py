"""Decay of a chunk of tokens: one mechanism for constant and per-token decay, documents and padding.

Everything follows from the log decay c_t accumulated since the border before the chunk, under one mask:

    intra        exp(c_t - c_s)      from the key at s to the query at t >= s, in the same document
    q_decay      exp(c_t)            of the state at the left border, if the token's document reaches it
    k_decay      exp(c_last - c_t)   of the key at t, if its document reaches the right border
    chunk_decay  expm1(c_last)       of the state that crosses the whole chunk, -1 if no document does

so that

    out     = (q k^T * intra) v + q_decay * (q state)
    kv_sum  = sum_t k_t (k_decay_t v_t)^T
    state  <- decay_and_add(state, chunk_decay, kv_sum)

For a constant decay c_t = rate * (number of tokens), whose differences are exact and need no array per token; for a
decay per token it is a cumulative sum, kept in two parts so that its differences are exact as well. No exponent is
positive, and masks are applied inside the exponent, so nothing overflows and no gradient contains inf * 0.

The factor of a chunk is kept as exp(c) - 1, because a weak decay such as 1 - 1e-5 rounds to the same wrong float32 at
every step, and the error grows with the number of steps; state + chunk_decay * state rounds without bias. At -1 it is
exactly 0, so nothing of an earlier document is left, not even in the rounding.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.linear_attention.operands import LogDecay
from transnormer_jax.ops.linear_attention.segments import Segments

FLOOR = -120.0
"""The smallest log decay of a step. exp(-120) is 0 in float32, so the weights are those of -inf; but a cumulative sum
that contains -1e30 has no digits left for the tokens after it, and one that contains -inf makes NaN."""

# Up to so many chunks, a loop costs more than it saves.
_UNROLLED = 8


class ChunkDecay(NamedTuple):
    """What the weights of M chunks of C tokens are made from.

    `steps` are counted since the border before the chunk: tokens that are not padding, or cumulative log decay.
    """

    rate: Float[Array, " H"]  # log decay of one unit of `steps`
    steps: Float[Array, "#B #M #H C"]
    rest: Float[Array, "B M H C"] | None = None  # what a float32 cumulative log decay lacks
    segment_index: Int[Array, "B M C"] | None = None  # None if all tokens are of one document
    index_before: Int[Array, "B M"] | None = None  # at the border before each chunk


class Weights(NamedTuple):
    """Weights of M chunks of C tokens, float32 in [0, 1], `chunk_decay` in [-1, 0]."""

    intra: Float[Array, "#B #M H C C"]
    q_decay: Float[Array, "#B #M H C"]
    k_decay: Float[Array, "#B #M H C"]
    chunk_decay: Float[Array, "#B #M H"]


def split_decay(
    log_decay: LogDecay, segments: Segments | None, num_tokens: int, num_chunks: int, chunk: int
) -> ChunkDecay:
    """Cuts a row into `num_chunks` chunks of `chunk` tokens; the tokens that are missing at its end take no step."""
    pad = num_chunks * chunk - num_tokens
    index = index_before = None
    if segments is not None:
        position, index = (jnp.pad(x, ((0, 0), (0, pad)), mode="edge").reshape(-1, num_chunks, chunk) for x in segments)
        index_before = _before(index)
    if log_decay.ndim == 3:
        steps = jnp.pad(log_decay, ((0, 0), (0, pad), (0, 0))).reshape(-1, num_chunks, chunk, log_decay.shape[2])
        return ChunkDecay(jnp.ones_like(log_decay[0, 0]), *_exact_sums(jnp.swapaxes(steps, 2, 3)), index, index_before)
    if segments is not None:
        steps = position - _before(position)[..., None]
    elif pad:
        border = jnp.minimum(jnp.arange(num_chunks) * chunk, num_tokens)[None, :, None]
        steps = jnp.minimum(border + jnp.arange(1, chunk + 1)[None, None], num_tokens) - border
    else:  # the same in every chunk
        steps = jnp.arange(1, chunk + 1)[None, None]
    return ChunkDecay(log_decay, steps[:, :, None].astype(jnp.float32), None, index, index_before)


def weights(decay: ChunkDecay) -> Weights:
    """The weights of the chunks; see the formulas at the top."""
    rate, steps, rest = decay.rate[None, None, :, None], decay.steps, decay.rest
    causal = jnp.tril(jnp.ones((1, 1, 1, *steps.shape[-1:] * 2), bool))
    within = rate[..., None] * (steps[..., :, None] - steps[..., None, :])
    of_query, of_key, across = rate * steps, rate * (steps[..., -1:] - steps), rate * steps[..., -1:]
    if rest is not None:
        within += rest[..., :, None] - rest[..., None, :]
        of_query, of_key, across = of_query + rest, of_key + (rest[..., -1:] - rest), across + rest[..., -1:]
    if decay.segment_index is not None and decay.index_before is not None:
        index, before = decay.segment_index[:, :, None], decay.index_before[:, :, None, None]
        causal = causal & (index[..., :, None] == index[..., None, :])
        of_query = jnp.where(index == before, of_query, -jnp.inf)
        of_key = jnp.where(index == index[..., -1:], of_key, -jnp.inf)
        across = jnp.where(before == index[..., -1:], across, -jnp.inf)
    intra = jnp.exp(jnp.where(causal, within, -jnp.inf))
    return Weights(intra, jnp.exp(of_query), jnp.exp(of_key), jnp.expm1(across)[..., 0])


def decay_and_add(
    state: Float[Array, "..."], chunk_decay: Float[Array, "..."], kv_sum: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The state at the right border of a chunk, from that at its left border; the shapes broadcast."""
    return (state + chunk_decay * state) + kv_sum


def scan_states(
    state: Float[Array, "B *H K V"],
    chunk_decay: Float[Array, "#B #M *H"],
    kv_sum: Float[Array, "B M *H K V"],
    *,
    reverse: bool = False,
    parallel: bool = False,
) -> tuple[Float[Array, "B M *H K V"], Float[Array, "B M *H K V"]]:
    """The states at both borders of M chunks, before and after each, from the one before the first.

    With `reverse` they are crossed from the last to the first. With `parallel` the scan is
    `jax.lax.associative_scan`, of logarithmic depth, instead of `jax.lax.scan`.
    """
    chunk_decay = jnp.broadcast_to(chunk_decay, kv_sum.shape[:-2])[..., None, None]
    if not parallel:

        def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, tuple[Array, Array]]:
            after = decay_and_add(state, *chunk)
            return after, (state, after)

        chunks = (jnp.moveaxis(chunk_decay, 1, 0), jnp.moveaxis(kv_sum, 1, 0))
        _, scanned = jax.lax.scan(step, state, chunks, reverse=reverse, unroll=kv_sum.shape[1] <= _UNROLLED)
        return jnp.moveaxis(scanned[0], 0, 1), jnp.moveaxis(scanned[1], 0, 1)

    def combine(earlier: list[Array], later: list[Array]) -> list[Array]:
        # (1 + a) (1 + b) - 1 in this order is exactly -1 where a or b is.
        return [decay_and_add(earlier[0], later[0], later[0]), decay_and_add(earlier[1], *later)]

    first = -1 if reverse else 0
    kv_sum = kv_sum.at[:, first].set(decay_and_add(state, chunk_decay[:, first], kv_sum[:, first]))
    _, after = jax.lax.associative_scan(combine, [chunk_decay, kv_sum], axis=1, reverse=reverse)
    first_and_rest = [after[:, 1:], state[:, None]] if reverse else [state[:, None], after[:, :-1]]
    return jnp.concatenate(first_and_rest, axis=1), after


def token_steps(
    log_decay: LogDecay, segments: Segments | None, num_tokens: int
) -> tuple[Float[Array, "#B N H"], Int[Array, "#B N"]]:
    """The log decay of each token, and 1 where a document starts that is not the first of its row, else 0."""
    if segments is None:
        steps = log_decay if log_decay.ndim == 3 else jnp.broadcast_to(log_decay, (1, num_tokens, *log_decay.shape))
        return steps, jnp.zeros((1, num_tokens), jnp.int32)
    position, starts = (jnp.diff(x, axis=1, prepend=jnp.zeros_like(x[:, :1])) for x in segments)
    return (log_decay if log_decay.ndim == 3 else position[..., None] * log_decay[None, None]), starts


def log_decay_gradient(
    d_steps: Float[Array, "B N H"], log_decay: LogDecay, segments: Segments | None, *, keep_starts: bool = False
) -> LogDecay:
    """The gradient of `log_decay` from that of each token's step.

    Padding takes no step. Nor does the first token of a later document decay anything, unless its own state enters
    there (`keep_starts`).
    """
    if segments is not None:
        steps, starts = token_steps(jnp.ones_like(d_steps[0, 0]), segments, d_steps.shape[1])
        counts = (steps > 0) & (keep_starts | (starts == 0)[..., None])
        d_steps = jnp.where(counts, d_steps, 0)
    return d_steps if log_decay.ndim == 3 else d_steps.sum((0, 1))


def _exact_sums(steps: Float[Array, "B M H C"]) -> tuple[Float[Array, "B M H C"], Float[Array, "B M H C"]]:
    """Cumulative sums of steps in [FLOOR, 0] in two parts.

    The first holds multiples of a power of two that is coarse enough for every sum to be exact. Next to steps of -100 a
    plain sum would lose the digits of weak ones.
    """
    unit = 2.0 ** (math.ceil(math.log2(-FLOOR * steps.shape[-1])) - 24)
    coarse = jnp.round(steps / unit) * unit
    return jnp.cumsum(coarse, axis=3), jnp.cumsum(steps - coarse, axis=3)


def _before(x: Int[Array, "B M C"]) -> Int[Array, "B M"]:
    """The value at the border before each chunk; it is 0 before the row."""
    return jnp.pad(x[:, :-1, -1], ((0, 0), (1, 0)))
