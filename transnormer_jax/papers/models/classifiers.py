"""Classifiers of one sequence and of two."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.models.block import Stack
from transnormer_jax.models.language_model import Embedding, positions_of
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.papers.models.dense import dense


class SequenceClassifier(nn.Module):
    """One class per sequence: the mean over its tokens, then a hidden layer.

    The encoder of Long Range Arena (arXiv 2011.04006) with mean pooling, as TransNormer uses it.

    Attributes:
      config: of the encoder.
      num_classes: width of the logits.
    """

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"]) -> Float[Array, "B classes"]:
        """Returns logits, float32; `segment_ids` is 1 at tokens and 0 at padding."""
        pooled = SequenceEncoder(self.config, name="encoder")(tokens, segment_ids)
        return _two_layers(self.config, self.num_classes)(pooled)


class DualEncoder(nn.Module):
    """One class per pair of sequences, each encoded by itself with the same weights: [a, b, a * b, a - b].

    The retrieval task of Long Range Arena (arXiv 2011.04006, section 2.2.3).

    Attributes:
      config: of the one encoder.
      num_classes: width of the logits.
    """

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B N"],
        segment_ids: Int[Array, "B N"],
        tokens_b: Int[Array, "B N"],
        segment_ids_b: Int[Array, "B N"],
    ) -> Float[Array, "B classes"]:
        """Returns logits, float32."""
        encoder = SequenceEncoder(self.config, name="encoder")
        a, b = encoder(tokens, segment_ids), encoder(tokens_b, segment_ids_b)
        return _two_layers(self.config, self.num_classes)(jnp.concatenate([a, b, a * b, a - b], axis=-1))


class SequenceEncoder(nn.Module):
    """A sequence to one vector."""

    config: ModelConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"]) -> Float[Array, "B D"]:
        """Returns the mean over the real tokens, zero where there is none."""
        positions = positions_of(tokens, segment_ids)
        x = Embedding(self.config, name="embed")(tokens, positions)
        x, _ = Stack(self.config, name="stack")(x, positions)
        real = (segment_ids != 0)[..., None]
        total = jnp.sum(jnp.where(real, x, 0).astype(jnp.float32), axis=1)
        return (total / jnp.maximum(jnp.sum(real, axis=1), 1)).astype(x.dtype)


def _two_layers(config: ModelConfig, num_classes: int) -> Callable[[Array], Array]:
    hidden = dense(config, config.model_dim, "hidden")
    head = dense(config, num_classes, "logits")
    return lambda x: head(jax.nn.gelu(hidden(x), approximate=False)).astype(jnp.float32)
