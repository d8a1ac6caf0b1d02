"""TransNormer (arXiv 2210.10340), T1 and T2, as a language model; and its baselines, which differ in attention."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.distributed import constrain
from transnormer_jax.errors import UserError
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.embedding import Embedding
from transnormer_jax.models.places import places_of
from transnormer_jax.models.stack import Stack, init_cache
from transnormer_jax.models.transnormer_config import TransNormerConfig


class TransNormer(nn.Module):
    """A causal language model, or with `causal=False` a masked one with the head of RoBERTa.

    >>> model = TransNormer(TransNormerConfig.preset("tiny", attention="t2"))
    >>> tokens = jnp.ones((2, 16), jnp.int32)
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> model.apply(variables, tokens).shape
    (2, 16, 259)
    >>> logits, cache = model.apply(variables, tokens, cache=model.init_cache(2))  # prefill
    >>> logits, cache = model.apply(variables, tokens[:, :1], cache=cache)  # one decoding step

    Attributes:
      config: sizes, attentions and dtypes.
    """

    config: TransNormerConfig

    def setup(self) -> None:
        """Declares embedding, stack and, for a masked language model, what stands before the tied head."""
        config = self.config
        self.embed = Embedding(config)
        self.stack = Stack(config)
        dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": jnp.dtype(config.param_dtype)}
        if not config.tie_embeddings:
            self.head = nn.Dense(config.vocab_size, **dtypes)
        if not config.causal:
            self.head_dense = nn.Dense(config.model_dim, **dtypes)
            self.head_norm = nn.LayerNorm(epsilon=1e-5, **dtypes)
            if config.tie_embeddings:
                self.head_bias = self.param(
                    "head_bias", nn.initializers.zeros, (config.vocab_size,), jnp.dtype(config.param_dtype)
                )

    def __call__(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> Float[Array, "B N V"] | tuple[Float[Array, "B N V"], Cache]:
        """Predicts the token after each token, or each token itself if not causal.

        Args:
          tokens: [B, N] int32.
          segment_ids: [B, N] int32, the documents of packed rows; 0 is padding.
          cache: what was read before, without `segment_ids`. Prefill and decoding are the same call.

        Returns:
          Logits [B, N, V] float32; with `cache`, the pair (logits, new cache).
        """
        hidden, cache = self.hidden(tokens, segment_ids=segment_ids, cache=cache)
        logits = self.unembed(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> tuple[Float[Array, "B N D"], Cache | None]:
        """What the head reads, [B, N, D], and the new cache; `tokens`, `segment_ids` and `cache` as for a call.

        Raises:
          UserError: both a cache and segment ids are given.
        """
        if cache is not None and segment_ids is not None:
            raise UserError("a cache continues one sequence per row: leave segment_ids out.")
        places = places_of(tokens, segment_ids, cache)
        x, states = self.stack(self.embed(tokens, places), places, None if cache is None else cache.states)
        return x, None if cache is None else Cache(cache.position + tokens.shape[1], states)

    def unembed(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """Logits, float32."""
        if not self.config.causal:
            hidden = self.head_norm(jax.nn.gelu(self.head_dense(hidden), approximate=False))
        if not self.config.tie_embeddings:
            logits = self.head(hidden).astype(jnp.float32)
        else:
            logits = self.embed.attend(hidden)
            if not self.config.causal:
                logits += self.head_bias.astype(jnp.float32)[None, None]
        return constrain(logits, "batch", "sequence", "vocab")

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int = 0) -> Cache:
        """The memory of `batch_size` sequences of which nothing has been read.

        Args:
          batch_size: B.
          max_length: most tokens of a sequence, for attentions that keep them all; 0 is `config.max_length`. Of learned
            positions, `config.max_length` is the most: beyond them the last is repeated, and no error can be raised.

        Returns:
          Positions 0 and the states of each layer before its first token.

        Raises:
          UserError: the model is not causal, or one of its attentions has no recurrent form.
        """
        return init_cache(self.config, batch_size, max_length)
