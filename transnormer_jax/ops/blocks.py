"""Rows of tokens as blocks of equal size."""

import jax.numpy as jnp
from jaxtyping import Array, Shaped


def split_blocks(x: Shaped[Array, "B N ..."], size: int) -> Shaped[Array, "B M {size} ..."]:
    """Blocks of `size` tokens of `x` [B, N, ...], of any dtype: [B, M, size, ...], the last filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)))
    return x.reshape(x.shape[0], x.shape[1] // size, size, *x.shape[2:])


def join_blocks(x: Shaped[Array, "B M C ..."], num_tokens: int) -> Shaped[Array, "B {num_tokens} ..."]:
    """The first `num_tokens` tokens of the blocks [B, M, C, ...], side by side: [B, num_tokens, ...]."""
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], *x.shape[3:])[:, :num_tokens]
