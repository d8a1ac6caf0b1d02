"""What the one model asks of a configuration, whichever model it describes."""

import dataclasses
from collections.abc import Hashable
from typing import Any, Self

import numpy as np


class ModelConfig:
    """The interface of `TransNormerLLMConfig` and `TransNormerConfig`; a default is for the one that has no choice."""

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
    reversible: bool = False
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

    def replace(self, **changes: Any) -> Self:
        """The same with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


def shared_by_layers[Entry](entries: tuple[Entry, ...], num_layers: int) -> tuple[Entry, ...]:
    """The entry of each layer where several share the layers evenly, from the first layer up."""
    return tuple(entries[layer * len(entries) // num_layers] for layer in range(num_layers))
