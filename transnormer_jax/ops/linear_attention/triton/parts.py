"""Cutting rows into parts that are swept at the same time, where there are too few heads to fill the GPU.

The kernel runs twice: once for what each part writes to an empty state, from keys and values alone, and once for the
output, when the state that enters each part is known. That is half as many bytes again, by many more programs.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.decay import decay_between, scan_states
from transnormer_jax.ops.linear_attention.segments import Segments

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


def initial_states(
    kv_sums: Float[Array, "B H _ K V"],
    state: Float[Array, "B H K V"],
    log_decay: Float[Array, " H"],
    cuts: Cuts,
    num_tokens: int,
    segments: Segments | None,
    *,
    reverse: bool,
) -> Float[Array, "B H P K V"]:
    """The state that enters each part; `kv_sums` lacks the part that the state leaves last."""
    chunk_decay = decay_between(log_decay, segments, np.minimum(np.arange(cuts.parts + 1) * cuts.tokens, num_tokens))
    chunk_decay = chunk_decay[:, 1:] if reverse else chunk_decay[:, :-1]
    before, after = scan_states(state, chunk_decay, jnp.moveaxis(kv_sums, 2, 1), reverse=reverse)
    states = [after[:, :1], before] if reverse else [before, after[:, -1:]]
    return jnp.moveaxis(jnp.concatenate(states, axis=1), 1, 2)
