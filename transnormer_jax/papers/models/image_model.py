"""Images byte by byte."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Int

from transnormer_jax.models.block import Stack, init_states
from transnormer_jax.models.language_model import Cache, Embedding, positions_of
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.papers.models.dense import dense


class ImageModel(nn.Module):
    """Images: each byte from those before it, as a mixture of logistics (arXiv 2006.16236, section 4.2).

    Attributes:
      config: of the stack, causal; the 256 bytes are its vocabulary.
      num_mixtures: M, logistics per byte.
    """

    config: ModelConfig
    num_mixtures: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], cache: Cache | None = None) -> Any:
        """Returns the mixtures [B, N, 3 M] float32, for `mixture_of_logistics`; with a cache, also the new one."""
        positions = positions_of(tokens, cache=cache)
        x = Embedding(self.config, name="embed")(tokens, positions)
        x, states = Stack(self.config, name="stack")(x, positions, None if cache is None else cache.states)
        mixtures = dense(self.config, 3 * self.num_mixtures, "head")(x).astype(jnp.float32)
        return mixtures if cache is None else (mixtures, Cache(cache.position + tokens.shape[1], states))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int = 0) -> Cache:
        """The memory of `batch_size` images that have not begun, `max_length` as for `TransNormer.init_cache`."""
        return Cache(jnp.zeros(batch_size, jnp.int32), init_states(self.config, batch_size, max_length))
