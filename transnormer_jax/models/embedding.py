"""Tokens and absolute positions as vectors, and vectors as tokens again."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.layers import Places
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.ops import sinusoids

# Position of the first token in the tables of fairseq, in which the paper's models were trained.
_FIRST_POSITION = 2


class Embedding(nn.Module):
    """Tokens and absolute positions to [B, N, D]."""

    config: TransNormerConfig

    def setup(self) -> None:
        """Declares the tables."""
        config = self.config
        param_dtype = jnp.dtype(config.param_dtype)
        width = config.model_dim // 2 if config.position == "concatenated" else config.model_dim
        # As large as the position that stands beside it: 1 for sinusoids, 0.02 in the manner of BERT for learned ones.
        std = width**-0.5 if config.scale_embedding else 0.02 if config.position in ("none", "learned") else 1.0
        self.embedding = self.param("embedding", nn.initializers.normal(std), (config.vocab_size, width), param_dtype)
        if config.position == "learned":
            self.positions = self.param(
                "positions", nn.initializers.normal(0.02), (config.max_length, width), param_dtype
            )
        if config.embedding_norm:
            self.norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, tokens: Int[Array, "B N"], places: Places) -> Float[Array, "B N D"]:
        """Embeds."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        x = jnp.asarray(self.embedding, dtype)[tokens]
        if config.scale_embedding:
            x *= jnp.asarray(np.sqrt(config.model_dim), dtype)
        if config.position in ("sinusoidal", "concatenated"):
            table = sinusoids(places.position + _FIRST_POSITION, x.shape[-1]).astype(dtype)
            table = jnp.broadcast_to(table, x.shape)
            x = x + table if config.position == "sinusoidal" else jnp.concatenate([x, table], axis=-1)
        if config.position == "learned":
            if tokens.shape[1] > config.max_length:
                raise UserError(
                    f"{tokens.shape[1]} tokens are more than max_length={config.max_length} learned positions."
                )
            x = x + jnp.asarray(self.positions, dtype)[places.position]
        if config.embedding_norm:
            x = self.norm(x)
        return self.dropout(x, deterministic=not self.has_rng("dropout"))

    def attend(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """Products with all embeddings, float32."""
        table = jnp.asarray(self.embedding, self.config.dtype)
        return jnp.einsum("bnd,vd->bnv", hidden, table, preferred_element_type=jnp.float32)
