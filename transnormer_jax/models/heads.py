"""What else stands on a stack of blocks: classifiers of one sequence and of two, images byte by byte, speech."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.layers import Places
from transnormer_jax.models.bilstm import BiLSTM, BiLSTMConfig
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.places import places_of
from transnormer_jax.models.stack import Stack, dropout
from transnormer_jax.models.transnormer import Embedding, init_cache
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.ops import sinusoids


class SequenceClassifier(nn.Module):
    """One class per sequence: the mean over its tokens, then a hidden layer.

    The encoder of Long Range Arena (arXiv 2011.04006) with mean pooling, as TransNormer uses it.

    Attributes:
      config: of the encoder.
      num_classes: width of the logits.
    """

    config: TransNormerConfig
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

    config: TransNormerConfig
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

    config: TransNormerConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B N"], segment_ids: Int[Array, "B N"]) -> Float[Array, "B D"]:
        """Returns the mean over the real tokens, zero where there is none."""
        places = places_of(tokens, segment_ids)
        x = Embedding(self.config, name="embed")(tokens, places)
        x, _ = Stack(self.config, name="stack")(x, places)
        real = (segment_ids != 0)[..., None]
        total = jnp.sum(jnp.where(real, x, 0).astype(jnp.float32), axis=1)
        return (total / jnp.maximum(jnp.sum(real, axis=1), 1)).astype(x.dtype)


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
        mixtures = _dense(self.config, 3 * self.num_mixtures, "head")(x).astype(jnp.float32)
        return mixtures if cache is None else (mixtures, Cache(cache.position + tokens.shape[1], states))

    @nn.nowrap
    def init_cache(self, batch_size: int, max_length: int = 0) -> Cache:
        """The memory of `batch_size` images that have not begun, `max_length` as for `TransNormer.init_cache`."""
        return init_cache(self.config, batch_size, max_length)


class SpeechModel(nn.Module):
    """Frames to phones: logits for CTC, by a stack of blocks or by a BiLSTM (arXiv 2006.16236, section 4.3).

    Attributes:
      config: of the stack or of the BiLSTM; its kind says which.
      num_labels: labels without the blank, which is class 0 of num_labels + 1.
    """

    config: TransNormerConfig | BiLSTMConfig
    num_labels: int

    def __post_init__(self) -> None:
        """Raises UserError for positions that frames cannot have."""
        super().__post_init__()
        if isinstance(self.config, TransNormerConfig) and self.config.position not in ("none", "sinusoidal"):
            raise UserError(
                f"position={self.config.position!r} is of an embedding, which frames have not: choose 'sinusoidal' or "
                "'none'."
            )

    @nn.compact
    def __call__(
        self, frames: Float[Array, "B N features"], segment_ids: Int[Array, "B N"]
    ) -> Float[Array, "B N labels+1"]:
        """Returns logits of blank (0) and the labels, float32."""
        config = self.config
        if isinstance(config, BiLSTMConfig):
            x = BiLSTM(config, name="bilstm")(frames.astype(config.dtype), segment_ids)
        else:
            places = Places(jnp.arange(frames.shape[1], dtype=jnp.int32)[None], segment_ids)
            x = _dense(config, config.model_dim, "frames")(frames.astype(config.dtype))
            if config.position != "none":
                x = x + sinusoids(places.position, config.model_dim).astype(x.dtype)
            x, _ = Stack(config, name="stack")(dropout(self, x), places)
        return _dense(config, self.num_labels + 1, "head")(x).astype(jnp.float32)


def _two_layers(config: TransNormerConfig, num_classes: int) -> Callable[[Array], Array]:
    hidden = _dense(config, config.model_dim, "hidden")
    head = _dense(config, num_classes, "logits")
    return lambda x: head(jax.nn.gelu(hidden(x), approximate=False)).astype(jnp.float32)


def _dense(config: TransNormerConfig | BiLSTMConfig, features: int, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype), name=name)
