"""Configuration of TransNormer and of everything that fits into its block: one word chooses the attention."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.models.mixers import MIXERS
from transnormer_jax.models.model_config import ModelConfig, shared_by_layers
from transnormer_jax.models.presets import check_fields

# T1 and T2 are the two models of the paper: block-diagonal attention below, NormAttention above.
_PATTERNS = {"t1": ("diag_t1", "norm_t1"), "t2": ("diag_t2", "norm_t2")}

_ROBERTA: dict[str, Any] = {
    "causal": False,
    "norm_first": False,
    "final_norm": False,
    "position": "learned",
    "scale_embedding": False,
    "embedding_norm": True,
}


@dataclasses.dataclass(frozen=True)
class TransNormerConfig(ModelConfig):
    """Everything that fixes a TransNormer. The defaults are T2, the causal model of arXiv 2210.10340.

    For a mixer with its own options, register a subclass that has them as fields as an architecture.

    Attributes:
      vocab_size: V, number of tokens in the vocabulary.
      num_layers: L, number of layers.
      model_dim: D, width of the model.
      num_heads: H, number of heads; each has D / H features.
      attention: "t1", "t2", "norm_t1", "norm_t2", "diag_t1", "diag_t2", "softmax" or another name in `MIXERS`; or
        several of them, separated by commas, which share the layers evenly from the first layer up:
        "diag_t2,diag_t2,norm_t2" is two thirds and one third; L names give one to each layer. "t1" and "t2" stand for
        "diag_t1,norm_t1" and "diag_t2,norm_t2".
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
      max_length: the longest row: rows of the learned positions, and what a mixer is made for that depends on it.
      scale_embedding: multiply embeddings by sqrt(D).
      tie_embeddings: use the embedding as the output projection; otherwise it has its own weights and bias.
      embedding_norm: a LayerNorm on the embeddings (RoBERTa).
      dropout: dropout rate on embeddings and on the outputs of attention and feed-forward; applied only where the
        caller gives a "dropout" key, as training does.
      block_size: tokens per block of diagonal attention.
      count_padding: count the zeros that fill the last block as keys, as the authors' bidirectional models do; only
        for rows without padding.
      dtype: dtype of the computation. States are always float32.
      param_dtype: dtype of the parameters.
      remat: what the backward pass recomputes. "none": nothing; "dots": everything except matrix products with weights;
        "full": whole blocks.
      backend: backend of `ops.linear_attention`, "auto" or one of its names.
      scan_layers: run equal neighbouring layers as one scan over stacked parameters; otherwise each layer has its own
        (`models.unstack_layers`).
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
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: str = "none"
    backend: str = "auto"
    scan_layers: bool = True

    first_position = 2
    """Of the sinusoids of fairseq, in which the paper's models were trained."""
    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "feed_forward": ("glu", "relu", "gelu"),
        "glu_activation": ("silu", "identity"),
        "norm": ("simple_rms_norm", "layer_norm"),
        "position": ("none", "sinusoidal", "concatenated", "learned"),
        "remat": ("none", "dots", "full"),
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": {
            "vocab_size": 259,
            "num_layers": 2,
            "model_dim": 32,
            "num_heads": 2,
            "feed_forward_dim": 48,
            "max_length": 64,
            "block_size": 8,
            "dropout": 0.0,
            "dtype": "float32",
        },
        "causal_lm": {"vocab_size": 267_744},
        "masked_lm": {"num_layers": 12, "model_dim": 768, "num_heads": 12, "feed_forward_dim": 2048, **_ROBERTA},
    }
    """WikiText-103's causal_lm has 156 million parameters with a vocabulary of 267,744 words; masked_lm has the size of
    RoBERTa and GPT-2's vocabulary."""

    def __post_init__(self) -> None:
        """Raises UserError where the fields do not fit together."""
        if isinstance(self.remat, bool):  # of a run from before there were several policies
            object.__setattr__(self, "remat", "full" if self.remat else "none")
        check_fields(self, self.choices, may_be_zero=self.may_be_zero)
        if self.model_dim % self.num_heads:
            raise UserError(f"model_dim={self.model_dim} must be a multiple of num_heads={self.num_heads}.")
        if self.position in ("sinusoidal", "concatenated") and self.model_dim % 4:
            raise UserError(f"model_dim={self.model_dim} must be a multiple of 4 for position={self.position!r}.")
        if self.position == "concatenated" and self.tie_embeddings:
            raise UserError("position='concatenated' embeds in D / 2 features: set tie_embeddings=False.")
        names = self._attention_pattern()
        for name in names:
            if name not in MIXERS:
                raise UserError(f"unknown attention {name!r}: {did_you_mean(name, (*MIXERS, *_PATTERNS))}")
        self.check_shared_by_layers("attention", names)

    def check_shared_by_layers(self, field: str, entries: tuple[Any, ...]) -> None:
        """Raises UserError if the entries of a field cannot share the layers evenly."""
        if not entries or self.num_layers % len(entries):
            raise UserError(
                f"num_layers={self.num_layers} cannot be shared evenly by the {len(entries)} entries of {field}: "
                "give a number of layers that is a multiple."
            )

    def _attention_pattern(self) -> tuple[str, ...]:
        return _PATTERNS.get(self.attention, tuple(self.attention.split(",")))

    @property
    def attentions(self) -> tuple[str, ...]:
        """The attention of each layer.

        >>> TransNormerConfig(attention="t1", num_layers=4).attentions
        ('diag_t1', 'diag_t1', 'norm_t1', 'norm_t1')
        """
        return shared_by_layers(self._attention_pattern(), self.num_layers)

    @property
    def norm_function(self) -> str:
        """TransNormer's SimpleRMSNorm differs from TransNormerLLM's at small vectors."""
        return "transnormer_rms_norm" if self.norm == "simple_rms_norm" else self.norm

    @property
    def embedding_std(self) -> float:
        """As large as the position that stands beside it: 1 for sinusoids, 0.02 as in BERT for learned ones."""
        if self.scale_embedding:
            return self.model_dim**-0.5
        return 0.02 if self.position in ("none", "learned") else 1.0

    @property
    def head_bias(self) -> bool:
        """Whether the head has a bias: unless it is that of a causal model tied to the embedding."""
        return not (self.causal and self.tie_embeddings)
