"""Where the tokens of a model stand: in which document, and how far from its beginning."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from transnormer_jax.layers import Places
from transnormer_jax.models.cache import Cache
from transnormer_jax.ops import token_positions


def places_of(
    tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
) -> Places:
    """Positions [B, N] or [1, N] int32 within documents; the first of a row goes on from the cache, if there is one.

    Args:
      tokens: [B, N], of which the shape alone is read.
      segment_ids: [B, N] int32, the documents of packed rows; 0 is padding. None: each row is one document.
      cache: what was read before.
    """
    start = jnp.zeros(1, jnp.int32) if cache is None else cache.position
    if segment_ids is not None:
        return Places(token_positions(segment_ids, jnp.broadcast_to(start, tokens.shape[:1])), segment_ids)
    return Places(start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None])
