"""Softmax attention, by JAX's own operator, and the cache of keys and values with which it decodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.linear_attention.segments import distinct_ids


class KeyValueCache(NamedTuple):
    """Keys and values of the tokens read so far; place t of a row holds its token t, and places not yet read hold 0.

    Attributes:
      k: [B, M, H, K] for at most M tokens.
      v: [B, M, H, K].
    """

    k: Float[Array, "B M H K"]
    v: Float[Array, "B M H K"]


def softmax_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H K"],
    *,
    causal: bool,
    segment_ids: Int[Array, "B N"] | None = None,
) -> Float[Array, "B N H K"]:
    """softmax(q k^T / sqrt(K)) v (arXiv 1706.03762, eq. 1).

    Args:
      causal: whether no token attends to a later one.
      segment_ids: [B, N] int32, documents of packed rows: tokens see those of their own document, and another one
        starts where the id changes. 0 is padding, which no token sees.

    Returns:
      [B, N, H, K] in v's dtype; at padding, something finite. The softmax is float32.
    """
    if segment_ids is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal)
    real = segment_ids != 0
    k, v = (jnp.where(real[..., None, None], x, 0) for x in (k, v))
    ids = distinct_ids(segment_ids)
    seen = (ids[:, :, None] == ids[:, None, :]) & real[:, None]
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], is_causal=causal)


def resume_softmax_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H K"],
    cache: KeyValueCache,
    position: Int[Array, "#B N"],
    segment_ids: Int[Array, "B N"] | None = None,
) -> tuple[Float[Array, "B N H K"], KeyValueCache]:
    """Causal softmax attention (arXiv 1706.03762, eq. 1) of N new tokens to themselves and to those in the cache.

    Args:
      cache: of the `position[:, 0]` tokens before; rows may differ in their number.
      position: [B, N] or [1, N] int32, places of the new tokens, less than M. Beyond M the cache cannot hold them, and
        the result is wrong; no error can be raised under `jit`.
      segment_ids: int32, 0 is padding; a row is one document, which goes on from the cache.

    Returns:
      out [B, N, H, K] in v's dtype, and the cache with the new tokens.
    """
    if q.shape[1] == 0:
        return v, cache
    position = jnp.broadcast_to(position, q.shape[:2])
    rows, place = jnp.arange(q.shape[0])[:, None], position
    if segment_ids is not None:
        place = jnp.where(segment_ids != 0, position, cache.k.shape[1])

    def write(old: Float[Array, "B M H K"], new: Float[Array, "B N H K"]) -> Float[Array, "B M H K"]:
        return old.at[rows, place].set(new.astype(old.dtype), mode="drop")

    cache = KeyValueCache(write(cache.k, k), write(cache.v, v))
    seen = jnp.arange(cache.k.shape[1])[None, None] <= position[..., None]
    return jax.nn.dot_product_attention(q, cache.k, cache.v, mask=seen[:, None]), cache
