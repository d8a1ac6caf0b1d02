"""The language model: embedding, stack and head, of TransNormerLLM, TransNormer and every baseline."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.distributed import constrain
from transnormer_jax.errors import UserError
from transnormer_jax.layers import TokenPositions
from transnormer_jax.models.block import Stack, init_states, layer_groups
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.ops import sinusoids, token_positions


class Cache(NamedTuple):
    """The memory of B sequences.

    Attributes:
      position: [B] int32, number of tokens read.
      states: for each group of equal layers what their mixer remembers, [layers, B, ...]: a float32 matrix per head
        [layers, B, H, K, V] of linear attention, the tokens of the current block of diagonal attention, or for softmax
        all tokens.
    """

    position: Int[Array, " B"]
    states: tuple[Any, ...]


class LanguageModel(nn.Module):
    """A causal language model, or with `config.causal=False` a masked one with the head of RoBERTa.

    >>> from transnormer_jax.models import TransNormerLLMConfig
    >>> model = LanguageModel(TransNormerLLMConfig.preset("tiny"))
    >>> tokens = jnp.ones((2, 16), jnp.int32)
    >>> variables = model.init(jax.random.key(0), tokens)
    >>> logits, cache = model.apply(variables, tokens, cache=model.init_cache(2))  # prefill
    >>> logits, cache = model.apply(variables, tokens[:, :1], cache=cache)  # one decoding step
    >>> logits.shape
    (2, 1, 259)

    Attributes:
      config: a `TransNormerLLMConfig` or a `TransNormerConfig`.
    """

    config: ModelConfig

    def setup(self) -> None:
        """Declares embedding, stack and head, whose parameters stand side by side."""
        config = self.config
        param_dtype = jnp.dtype(config.param_dtype)
        self.embed = Embedding(config)
        self.stack = Stack(config)
        for module in (self.embed, self.stack):
            nn.share_scope(self, module)
        if not config.tie_embeddings:
            self.head = self.param("head", _head_init(config), (config.vocab_size, config.model_dim), param_dtype)
        if config.head_bias:
            self.head_bias = self.param("head_bias", nn.initializers.zeros, (config.vocab_size,), param_dtype)
        if not config.causal:
            dtypes: dict[str, Any] = {"dtype": jnp.dtype(config.dtype), "param_dtype": param_dtype}
            self.head_dense = nn.Dense(config.model_dim, **dtypes)
            self.head_norm = nn.LayerNorm(epsilon=1e-5, **dtypes)

    def __call__(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> Float[Array, "B N V"] | tuple[Float[Array, "B N V"], Cache]:
        """Predicts the token after each token, or each token itself if not causal.

        Args:
          segment_ids: int32, the documents of packed rows; 0 is padding, on either side (`linear_attention`). With a
            cache of softmax attention, a row is one document.
          cache: what was read before. Prefill and decoding are the same call.

        Returns:
          Logits, float32; with `cache`, the pair (logits, new cache).
        """
        hidden, cache = self.hidden(tokens, segment_ids=segment_ids, cache=cache)
        logits = self.unembed(hidden)
        return logits if cache is None else (logits, cache)

    def hidden(
        self, tokens: Int[Array, "B N"], *, segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
    ) -> tuple[Float[Array, "B N D"], Cache | None]:
        """What the head reads, and the new cache: for a loss or a prefill that does not need every logit.

        `tokens`, `segment_ids` and `cache` are as for a call.
        """
        positions = positions_of(tokens, segment_ids, cache)
        x, states = self.stack(self.embed(tokens, positions), positions, None if cache is None else cache.states)
        if cache is None:
            return x, None
        read = cache.position + tokens.shape[1] if segment_ids is None else positions.position[:, -1] + 1
        return x, Cache(read, states)

    def unembed(self, hidden: Float[Array, "B N D"]) -> Float[Array, "B N V"]:
        """Logits, float32."""
        config = self.config
        if not config.causal:
            hidden = self.head_norm(jax.nn.gelu(self.head_dense(hidden), approximate=False))
        name = "embedding" if config.tie_embeddings else "head"
        table = gathered(self.embed.embedding if config.tie_embeddings else self.head, config.dtype)
        logits = jnp.einsum("bnd,vd->bnv", hidden, table, preferred_element_type=jnp.float32)
        if self.has_variable("params", f"{name}_scale"):  # The table is int8, see `inference.quantization`.
            logits *= self.get_variable("params", f"{name}_scale")[None, None]
        if config.head_bias:
            logits += self.head_bias.astype(jnp.float32)[None, None]
        return constrain(logits, "batch", "sequence", "vocab")

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int = 0) -> Cache:
        """The memory of `batch_size` sequences of which nothing has been read.

        Args:
          max_length: most tokens of a sequence, for attentions that keep them all; 0 is `config.max_length`. Of learned
            positions, `config.max_length` is the most: beyond them the last is repeated, and no error can be raised.

        Returns:
          Positions 0 and the states of each group of layers before its first token.

        Raises:
          UserError: the model is not causal, or one of its attentions has no recurrent form.
        """
        return Cache(jnp.zeros(batch_size, jnp.int32), init_states(self.config, batch_size, max_length))


class Embedding(nn.Module):
    """Tokens and absolute positions to [B, N, D]."""

    config: ModelConfig

    def setup(self) -> None:
        """Declares the tables."""
        config = self.config
        param_dtype = jnp.dtype(config.param_dtype)
        width = config.model_dim // 2 if config.position == "concatenated" else config.model_dim
        self.embedding = self.param("embedding", _embedding_init(config), (config.vocab_size, width), param_dtype)
        if config.position == "learned":
            self.positions = self.param(
                "positions", nn.initializers.normal(0.02), (config.max_length, width), param_dtype
            )
        if config.embedding_norm:
            self.embedding_norm = nn.LayerNorm(epsilon=1e-5, dtype=jnp.dtype(config.dtype), param_dtype=param_dtype)
        self.dropout = nn.Dropout(config.dropout)

    def __call__(self, tokens: Int[Array, "B N"], positions: TokenPositions) -> Float[Array, "B N D"]:
        """Embeds."""
        config = self.config
        dtype = jnp.dtype(config.dtype)
        if self.has_variable("params", "embedding_scale"):  # The table is int8, see `inference.quantization`.
            scale: Array = self.get_variable("params", "embedding_scale")[tokens]
            x = (self.embedding[tokens] * scale[..., None]).astype(dtype)
        else:
            x = gathered(self.embedding, config.dtype)[tokens]
        if config.scale_embedding:
            x *= jnp.asarray(np.sqrt(config.model_dim), dtype)
        if config.position in ("sinusoidal", "concatenated"):
            table = sinusoids(positions.position + config.first_position, x.shape[-1]).astype(dtype)
            table = jnp.broadcast_to(table, x.shape)
            x = x + table if config.position == "sinusoidal" else jnp.concatenate([x, table], axis=-1)
        if config.position == "learned":
            if tokens.shape[1] > config.max_length:
                raise UserError(
                    f"{tokens.shape[1]} tokens are more than max_length={config.max_length} learned positions."
                )
            x = x + jnp.asarray(self.positions, dtype)[positions.position]
        if config.embedding_norm:
            x = self.embedding_norm(x)
        x = self.dropout(x, deterministic=not self.has_rng("dropout"))
        return constrain(x, "batch", "sequence", None)


def positions_of(
    tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"] | None = None, cache: Cache | None = None
) -> TokenPositions:
    """Positions int32 within documents; the first document of a row goes on from the cache, if there is one.

    Args:
      tokens: of which the shape alone is read.
      segment_ids: int32, the documents of packed rows; 0 is padding. None: each row is one document.
      cache: what was read before.
    """
    start = jnp.zeros(1, jnp.int32) if cache is None else cache.position
    if segment_ids is not None:
        return TokenPositions(token_positions(segment_ids, jnp.broadcast_to(start, tokens.shape[:1])), segment_ids)
    return TokenPositions(start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)[None])


def unstack_layers(
    config: ModelConfig, params: Mapping[str, Any], *, donate: bool = False
) -> tuple[ModelConfig, dict[str, Any]]:
    """The same model with parameters of its own for every layer.

    A scan copies the parameters of each layer out of the stack before it computes with them. Where a token takes no
    longer than reading the weights, as in decoding on a CPU, that takes most of the time.

    Args:
      donate: whether the stacked arrays, which must be of JAX then, are deleted one by one, so that not both exist.

    Returns:
      The configuration with `scan_layers=False`, and its parameters.
    """
    if not config.scan_layers:
        return config, dict(params)
    unstacked = dict(params)
    for group in layer_groups(config):
        stacked, treedef = jax.tree.flatten(unstacked.pop(f"layers_{group[0]}"))
        leaves: list[list[Array]] = []
        for leaf in stacked:
            leaves.append([leaf[i : i + 1] for i in range(len(group))] if len(group) > 1 else [leaf])
            if donate and len(group) > 1:
                jax.block_until_ready(leaves[-1])
                leaf.delete()
        for i, layer in enumerate(group):
            unstacked[f"layers_{layer}"] = jax.tree.unflatten(treedef, [parts[i] for parts in leaves])
    return config.replace(scan_layers=False), unstacked


def gathered(table: Float[Array, "V D"], dtype: str) -> Float[Array, "V D"]:
    """A table whole along D: divided as it is stored, a lookup would give each device all tokens and a shard of D.

    XLA would then gather the tokens instead.
    """
    return constrain(jnp.asarray(table, dtype), "vocab", None)


def _embedding_init(config: ModelConfig) -> nn.initializers.Initializer:
    normal = nn.initializers.normal(config.embedding_std)

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        table = normal(key, shape, dtype)
        return table if config.pad_token_id is None else table.at[config.pad_token_id].set(0)

    return init


def _head_init(config: ModelConfig) -> nn.initializers.Initializer:
    if config.init_std is not None:
        return _embedding_init(config)
    return nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal", in_axis=1, out_axis=0)
