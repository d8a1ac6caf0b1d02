"""Images byte by byte."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from transnormer_jax.models.cache import Cache
from transnormer_jax.models.embedding import Embedding
from transnormer_jax.models.places import places_of
from transnormer_jax.models.stack import Stack, init_cache
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.papers.models.dense import dense


class ImageModel(nn.Module):
    """Images: each byte from those before it, as a mixture of logistics (arXiv 2006.16236, section 4.2).

    Attributes:
      config: of the stack, causal; the 256 bytes are its vocabulary.
      num_mixtures: M, logistics per byte.
    """

    config: TransNormerConfig
    num_mixtures: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], cache: Cache | None = None) -> Any:
        """Returns the mixtures [B, N, 3 M] float32, for `mixture_of_logistics`; with a cache, also the new one."""
        places = places_of(tokens, cache=cache)
        x = Embedding(self.config, name="embed")(tokens, places)
        x, states = Stack(self.config, name="stack")(x, places, None if cache is None else cache.states)
        mixtures = dense(self.config, 3 * self.num_mixtures, "head")(x).astype(jnp.float32)
        return mixtures if cache is None else (mixtures, Cache(cache.position + tokens.shape[1], states))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int = 0) -> Cache:
        """The memory of `batch_size` images that have not begun, `max_length` as for `TransNormer.init_cache`."""
        return init_cache(self.config, batch_size, max_length)
