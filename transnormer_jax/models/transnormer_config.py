"""Configuration of TransNormer and of everything that fits into its block: one word chooses the attention."""

import dataclasses
from collections.abc import Iterable
from typing import Any

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.models.mixers import MIXERS
from transnormer_jax.models.presets import check_fields, from_preset

# T1 and T2 are the two models of the paper: block-diagonal attention below, NormAttention above.
_PATTERNS = {"t1": ("diag_t1", "norm_t1"), "t2": ("diag_t2", "norm_t2")}

_CHOICES = {
    "feed_forward": ("glu", "relu", "gelu"),
    "glu_activation": ("silu", "identity"),
    "norm": ("simple_rms_norm", "layer_norm"),
    "position": ("none", "sinusoidal", "concatenated", "learned"),
    "linformer_projection": ("learned", "convolution", "mean", "max"),
    "linformer_sharing": ("none", "headwise", "key_value", "layerwise"),
}


@dataclasses.dataclass(frozen=True)
class TransNormerConfig:
    """Everything that fixes a TransNormer or a baseline. The defaults are T2, the causal model of arXiv 2210.10340.

    Attributes:
      vocab_size: V, number of tokens in the vocabulary.
      num_layers: L, number of layers.
      model_dim: D, width of the model.
      num_heads: H, number of heads; each has D / H features.
      attention: "t1", "t2", "norm_t1", "norm_t2", "diag_t1", "diag_t2", "linear", "linformer", "linformer_linear",
        "lsh", "softmax", "cosformer" or "performer"; or several of them, separated by commas, which share the layers
        evenly from the first layer up: "diag_t2,diag_t2,norm_t2" is two thirds and one third; L names give one to each
        layer. "t1" and "t2" stand for "diag_t1,norm_t1" and "diag_t2,norm_t2".
      causal: let a token see only itself and those before it; otherwise it sees its whole document.
      feed_forward: "glu", or two projections with "relu" or "gelu" between them.
      feed_forward_dim: F, the inner width of the feed-forward layer.
      glu_activation: activation of the gate, "silu" or "identity"; the latter for weights trained with the authors'
        code after October 2022.
      norm: "simple_rms_norm" or "layer_norm".
      norm_first: norms before attention and feed-forward (language model of the paper), or after the residual sums
        (RoBERTa).
      final_norm: a norm after the last layer.
      position: absolute positions: "none"; "sinusoidal" and "learned" are added to the embedding; "concatenated" is a
        sinusoid in the other half of the features (Linear Transformer). TransNormer's own attentions always have LRPE.
      max_length: rows of the learned positions and columns of the Linformer's projections; cosFormer's horizon.
      scale_embedding: multiply embeddings by sqrt(D).
      tie_embeddings: use the embedding as the output projection; otherwise it has its own weights and bias.
      embedding_norm: a LayerNorm on the embeddings (RoBERTa).
      dropout: dropout rate on embeddings and on the outputs of attention and feed-forward; applied only where the
        caller gives a "dropout" key, as training does.
      block_size: tokens per block of diagonal attention.
      count_padding: count the zeros that fill the last block as keys, as the authors' bidirectional models do; only
        for rows without padding.
      linformer_dim: k, rows of the Linformer's projections; several numbers share the layers as `attention` does.
      linformer_projection: how the length is projected: "learned", "convolution", "mean" or "max".
      linformer_sharing: which projections are shared: "none", "headwise", "key_value" or "layerwise".
      lsh_rounds: rounds of hashing.
      lsh_chunk: tokens per chunk of LSH attention.
      lsh_buckets: buckets per round; 0 means 2 N / chunk.
      performer_features: random features per head.
      reversible: recompute the activations of a layer from those after it (Reformer), so that none are kept; on the
        CPU the compiler still plans about one [B, N, D] more per sublayer.
      dtype: dtype of the computation. States are always float32.
      param_dtype: dtype of the parameters.
      remat: recompute each block in the backward pass.
      backend: backend of `ops.linear_attention`, "auto" or one of its names.
    """

    vocab_size: int = 50_265
    num_layers: int = 6
    model_dim: int = 512
    num_heads: int = 8
    attention: str = "t2"
    causal: bool = True
    feed_forward: str = "glu"
    feed_forward_dim: int = 1365
    glu_activation: str = "silu"
    norm: str = "simple_rms_norm"
    norm_first: bool = True
    final_norm: bool = True
    position: str = "sinusoidal"
    max_length: int = 512
    scale_embedding: bool = True
    tie_embeddings: bool = True
    embedding_norm: bool = False
    dropout: float = 0.1
    block_size: int = 64
    count_padding: bool = False
    linformer_dim: tuple[int, ...] = (128,)
    linformer_projection: str = "learned"
    linformer_sharing: str = "headwise"
    lsh_rounds: int = 4
    lsh_chunk: int = 64
    lsh_buckets: int = 0
    performer_features: int = 64
    reversible: bool = False
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        """Raises UserError where the fields do not fit together."""
        dims = self.linformer_dim
        object.__setattr__(self, "linformer_dim", tuple(dims) if isinstance(dims, Iterable) else (dims,))
        check_fields(self, _CHOICES, may_be_zero=("lsh_buckets",))
        if any(not isinstance(dim, int) or dim < 1 for dim in self.linformer_dim):
            raise UserError(f"linformer_dim={self.linformer_dim} must be whole numbers, 1 or more.")
        if self.lsh_buckets % 2:
            raise UserError(f"lsh_buckets={self.lsh_buckets} must be even, since a rotation makes buckets in pairs.")
        if self.model_dim % self.num_heads:
            raise UserError(f"model_dim={self.model_dim} must be a multiple of num_heads={self.num_heads}.")
        if self.position in ("sinusoidal", "concatenated") and self.model_dim % 4:
            raise UserError(f"model_dim={self.model_dim} must be a multiple of 4 for position={self.position!r}.")
        if self.position == "concatenated" and self.tie_embeddings:
            raise UserError("position='concatenated' embeds in D / 2 features: set tie_embeddings=False.")
        if self.reversible and not self.norm_first:
            raise UserError("reversible=True needs norm_first=True: a norm after the sum cannot be undone.")
        names = _PATTERNS.get(self.attention, tuple(self.attention.split(",")))
        for name in names:
            if name not in MIXERS:
                raise UserError(f"unknown attention {name!r}: {did_you_mean(name, (*MIXERS, *_PATTERNS))}")
        for what, count in (("attention", len(names)), ("linformer_dim", len(self.linformer_dim))):
            if not count or self.num_layers % count:
                raise UserError(
                    f"num_layers={self.num_layers} cannot be shared evenly by the {count} entries of {what}: "
                    "give a number of layers that is a multiple."
                )
        if any("linformer" in name for name in names):
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
    def attentions(self) -> tuple[str, ...]:
        """The attention of each layer.

        >>> TransNormerConfig(attention="t1", num_layers=4).attentions
        ('diag_t1', 'diag_t1', 'norm_t1', 'norm_t1')
        """
        names = _PATTERNS.get(self.attention, tuple(self.attention.split(",")))
        return tuple(names[layer * len(names) // self.num_layers] for layer in range(self.num_layers))

    @property
    def linformer_dims(self) -> tuple[int, ...]:
        """The Linformer's k of each layer."""
        dims = self.linformer_dim
        return tuple(dims[layer * len(dims) // self.num_layers] for layer in range(self.num_layers))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "TransNormerConfig":
        """A published model, with some fields replaced.

        "causal_lm": WikiText-103, 156 million parameters with its vocabulary of 267,744 words; "masked_lm": RoBERTa's
        size with GPT-2's vocabulary; "linear_transformer": the Linear Transformer's model of MNIST. "tiny": for tests.

        >>> TransNormerConfig.preset("masked_lm").num_layers
        12

        Args:
          name: one of these.
          **overrides: field -> value.

        Returns:
          The configuration.

        Raises:
          UserError: the name or a field is unknown, or the fields do not fit together.
        """
        return from_preset(cls, _PRESETS, name, overrides)


_ROBERTA: dict[str, Any] = {
    "causal": False,
    "norm_first": False,
    "final_norm": False,
    "position": "learned",
    "scale_embedding": False,
    "embedding_norm": True,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 259,
        "num_layers": 2,
        "model_dim": 32,
        "num_heads": 2,
        "feed_forward_dim": 48,
        "max_length": 64,
        "block_size": 8,
        "linformer_dim": (8,),
        "lsh_rounds": 2,
        "lsh_chunk": 8,
        "performer_features": 16,
        "dropout": 0.0,
        "dtype": "float32",
    },
    "causal_lm": {"vocab_size": 267_744},
    "masked_lm": {"num_layers": 12, "model_dim": 768, "num_heads": 12, "feed_forward_dim": 2048, **_ROBERTA},
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
