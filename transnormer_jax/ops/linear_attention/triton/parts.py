"""Cutting rows into parts that are swept at the same time, where there are too few heads to fill the GPU.

The kernel runs twice: once for what each part writes to an empty state, from keys and values alone, and once for the
output, when the state that enters each part is known. That is half as many bytes again, by many more programs.
"""

from typing import NamedTuple

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
