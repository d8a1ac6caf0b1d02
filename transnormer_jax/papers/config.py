"""The configuration of the papers' baselines: TransNormer's, with the options of their mixers."""

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar

from transnormer_jax.errors import UserError
from transnormer_jax.models import ARCHITECTURES, ModelConfig, TransNormerConfig
from transnormer_jax.models.model_config import shared_by_layers
from transnormer_jax.papers.reversible import ReversibleBlocks, reversible_blocks


@ARCHITECTURES.register("baseline")
@dataclasses.dataclass(frozen=True)
class BaselineConfig(TransNormerConfig):
    """Everything that fixes a baseline, or the TransNormer that it is compared with.

    To the names of `attention` the papers add "linear", "linformer", "linformer_linear", "lsh", "cosformer" and
    "performer". Those without options, "linear" and "cosformer", fit into a `TransNormerConfig` as well.

    Attributes:
      linformer_dim: k, rows of the Linformer's projections; several numbers share the layers as `attention` does. The
        projections have `max_length` columns.
      linformer_projection: how the length is projected: "learned", "convolution", "mean" or "max".
      linformer_sharing: which projections are shared: "none", "headwise", "key_value" or "layerwise".
      lsh_rounds: rounds of hashing.
      lsh_chunk: tokens per chunk of LSH attention.
      lsh_buckets: buckets per round; 0 means 2 N / chunk.
      performer_features: random features per head.
      reversible: recompute the activations of a layer from those after it (Reformer), so that none are kept; on the
        CPU the compiler still plans about one [B, N, D] more per sublayer.
    """

    linformer_dim: tuple[int, ...] = (128,)
    linformer_projection: str = "learned"
    linformer_sharing: str = "headwise"
    lsh_rounds: int = 4
    lsh_chunk: int = 64
    lsh_buckets: int = 0
    performer_features: int = 64
    reversible: bool = False

    choices: ClassVar[Mapping[str, Collection[str]]] = {
        **TransNormerConfig.choices,
        "linformer_projection": ("learned", "convolution", "mean", "max"),
        "linformer_sharing": ("none", "headwise", "key_value", "layerwise"),
    }
    may_be_zero = ("lsh_buckets",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **TransNormerConfig.presets,
        "tiny": {
            **TransNormerConfig.presets["tiny"],
            "linformer_dim": (8,),
            "lsh_rounds": 2,
            "lsh_chunk": 8,
            "performer_features": 16,
        },
        "linear_transformer": {
            "vocab_size": 256,
            "num_layers": 8,
            "model_dim": 256,
            "attention": "linear",
            "feed_forward": "relu",
            "feed_forward_dim": 1024,
            "norm": "layer_norm",
            "norm_first": False,
            "position": "concatenated",
            "max_length": 784,
            "scale_embedding": False,
            "tie_embeddings": False,
        },
    }
    """Those of `TransNormerConfig`, and the Linear Transformer's model of MNIST."""

    def __post_init__(self) -> None:
        """Raises UserError where the fields do not fit together."""
        dims = self.linformer_dim
        object.__setattr__(self, "linformer_dim", tuple(dims) if isinstance(dims, Iterable) else (dims,))
        super().__post_init__()
        if any(not isinstance(dim, int) or dim < 1 for dim in self.linformer_dim):
            raise UserError(f"linformer_dim={self.linformer_dim} must be whole numbers, 1 or more.")
        self.check_shared_by_layers("linformer_dim", self.linformer_dim)
        if self.lsh_buckets % 2:
            raise UserError(f"lsh_buckets={self.lsh_buckets} must be even, since a rotation makes buckets in pairs.")
        if self.reversible and not self.norm_first:
            raise UserError("reversible=True needs norm_first=True: a norm after the sum cannot be undone.")
        if any("linformer" in name for name in self.attentions):
            self._check_linformer()

    def _check_linformer(self) -> None:
        if self.causal:
            raise UserError(
                "attention 'linformer' has no causal form, since every row of the projected keys mixes all positions, "
                "later ones included: set causal=False, or choose another attention."
            )
        if self.linformer_sharing != "layerwise":
            return
        if len(set(self.linformer_dim)) > 1:
            raise UserError(
                f"linformer_sharing='layerwise' is one projection for all layers, and linformer_dim="
                f"{self.linformer_dim} are several: give one."
            )
        if self.reversible:
            raise UserError(
                "reversible=True cannot share one projection among layers: set linformer_sharing to another."
            )

    @property
    def linformer_dims(self) -> tuple[int, ...]:
        """The Linformer's k of each layer."""
        return shared_by_layers(self.linformer_dim, self.num_layers)

    def layer_kind(self, layer: int) -> tuple[str, int]:
        """Attention, and the Linformer's k."""
        return self.attentions[layer], self.linformer_dims[layer]

    def custom_layers(self, **module: Any) -> ReversibleBlocks | None:
        """Reversible blocks, if they are asked for."""
        return reversible_blocks(self, **module) if self.reversible else None


def baseline_options(config: ModelConfig) -> BaselineConfig:
    """The configuration of a mixer that has options.

    Raises:
      UserError: the architecture has none of them.
    """
    if not isinstance(config, BaselineConfig):
        raise UserError(
            f"attention {', '.join(dict.fromkeys(config.attentions))!r} needs options that only "
            "config.architecture='baseline' has: begin the configuration with default_config('baseline')."
        )
    return config
