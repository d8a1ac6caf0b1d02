"""Cutting rows into parts that are swept at the same time, where there are too few heads to fill the GPU.

The kernel runs twice: once for what each part writes to an empty state, from keys and values alone, and once for the
output, when the state that enters each part is known. That is half as many bytes again, by many more programs.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import block_weights

# Two programs on each of the 132 multiprocessors of an H100 or H200.
_FULL = 264
_SHORTEST = 512
# Inside a part the kernel counts elements in 32 bits, and tokens in float32.
_MOST_ELEMENTS = 2**31
_MOST_TOKENS = 2**24


class Cuts(NamedTuple):
    """`parts` parts of `tokens` tokens; the last one may be shorter."""

    parts: int
    tokens: int


def cut(num_tokens: int, chunk: int, programs: int, stride: int) -> Cuts:
    """Cuts rows into parts of whole chunks.

    Args:
      num_tokens: N.
      chunk: tokens per chunk.
      programs: number of programs, where rows are not cut.
      stride: elements from one token to the next.
    """
    parts = 1
    while 2 * parts * programs <= _FULL and num_tokens >= 2 * parts * _SHORTEST:
        parts *= 2
    longest = (min(_MOST_ELEMENTS // stride, _MOST_TOKENS) // chunk - 1) * chunk
    tokens = min(-(-num_tokens // (parts * chunk)) * chunk, longest)
    return Cuts(-(-num_tokens // tokens), tokens)


def combine(
    written: Float[Array, "B H _ K V"],
    state: Float[Array, "B H K V"],
    log_decay: Float[Array, " H"],
    cuts: Cuts,
    num_tokens: int,
    segments: Segments | None,
    *,
    reverse: bool,
) -> Float[Array, "B H P K V"]:
    """The state that enters each part: `state`, and what the parts it passed through wrote, each with its decay.

    A state lies at the boundary where it leaves its part, and the decays between boundaries are those within a block of
    tokens at these places (weights.py). `written` lacks the part that the state leaves last.
    """
    state = state[:, :, None]
    states = jnp.concatenate([written, state] if reverse else [state, written], axis=2)
    boundaries = np.minimum((np.arange(cuts.parts) + reverse) * cuts.tokens, num_tokens)
    if segments is None:
        places = Segments(jnp.asarray(boundaries[None]), jnp.zeros((1, cuts.parts), jnp.int32))
    else:  # the place after a token is its own; the place before the row is 0
        places = Segments(*(jnp.where(boundaries[None] > 0, x[:, boundaries - 1], 0) for x in segments))
    weights = block_weights(log_decay, cuts.parts, 1, cuts.parts, places)
    between = (weights.reversed() if reverse else weights).intra[:, 0]
    between = jnp.broadcast_to(between, (state.shape[0], *between.shape[1:]))
    return jnp.einsum("bhps,bhskv->bhpkv", between, states, precision=jax.lax.Precision.HIGHEST)
