"""What the one model asks of a configuration, whichever model it describes."""

import dataclasses
from collections.abc import Collection, Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from transnormer_jax.models.presets import from_preset

if TYPE_CHECKING:
    import flax.linen as nn


class ModelConfig:
    """The interface of `TransNormerLLMConfig` and `TransNormerConfig`; a default is for the one that has no choice."""

    choices: ClassVar[Mapping[str, Collection[str]]] = {}
    """The words that a field may be."""
    may_be_zero: ClassVar[Collection[str]] = ()
    """Fields that are whole numbers from 0; others begin at 1."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The fields of each named model that differ from the defaults."""

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    norm: str
    norm_eps: float = 1e-5
    norm_first: bool = True
    final_norm: bool = True
    feed_forward: str = "glu"
    glu_activation: str
    first_position: int = 0
    max_length: int = 0
    scale_embedding: bool
    tie_embeddings: bool
    embedding_norm: bool = False
    pad_token_id: int | None = None
    init_std: float | None = None
    use_bias: bool = True
    causal: bool = True
    dropout: float = 0.0
    dtype: str
    param_dtype: str
    remat: str
    backend: str
    scan_layers: bool

    @property
    def attentions(self) -> tuple[str, ...]:
        """The token mixer of each layer, names of `models.mixers`."""
        raise NotImplementedError

    @property
    def feed_forward_dim(self) -> int:
        """F, the inner width of the feed-forward layer."""
        raise NotImplementedError

    @property
    def position(self) -> str:
        """Absolute positions: "none", "sinusoidal", "concatenated" or "learned"."""
        raise NotImplementedError

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the embedding at initialisation."""
        raise NotImplementedError

    @property
    def head_bias(self) -> bool:
        """Whether the head has a bias."""
        return False

    @property
    def head_dim(self) -> int:
        """K = V = D / H."""
        return self.model_dim // self.num_heads

    @property
    def norm_function(self) -> str:
        """The norm, a name of `layers.make_norm`."""
        return self.norm

    def layer_kind(self, layer: int) -> Hashable:
        """Equal for layers that differ in their parameters and their decay alone."""
        return self.attentions[layer]

    def log_decays(self) -> np.ndarray | None:
        """The log of what each head keeps of its state from token to token, [L, H] float32; None without decay."""
        return None

    @property
    def linear_key_dims(self) -> tuple[int, ...]:
        """K of `ops.linear_attention` in the layers, each once; empty unless every layer is linear attention."""
        return ()

    def custom_layers(self, **module: Any) -> "nn.Module | None":
        """A module (x, positions) -> x, without states, that replaces the loop over the layers.

        `module` is Flax's `name` or `parent`.
        """
        del module
        return None

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> Self:
        """A model of `presets`, with some fields replaced.

        >>> from transnormer_jax.models import TransNormerLLMConfig
        >>> TransNormerLLMConfig.preset("385m", num_layers=12).model_dim
        1024

        Raises:
          UserError: the name or a field is unknown, or the fields do not fit together.
        """
        return from_preset(cls, cls.presets, name, overrides)

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def shared_by_layers[Entry](entries: tuple[Entry, ...], num_layers: int) -> tuple[Entry, ...]:
    """The entry of each layer where several share the layers evenly, from the first layer up."""
    return tuple(entries[layer * len(entries) // num_layers] for layer in range(num_layers))
