"""Configuration of TransNormerLLM, with the sizes of the paper and of the released checkpoints."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import numpy as np

from transnormer_jax.errors import UserError
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.models.presets import check_fields
from transnormer_jax.ops import paper_log_decay, released_log_decay


def _size(num_layers: int, model_dim: int, num_heads: int) -> dict[str, Any]:
    return {
        "num_layers": num_layers,
        "model_dim": model_dim,
        "num_heads": num_heads,
        "glu_dim": model_dim * 11 // 4,
    }


@dataclasses.dataclass(frozen=True)
class TransNormerLLMConfig(ModelConfig):
    """Everything that fixes a TransNormerLLM. The defaults are the released 385M.

    Where a field offers more than the released models have, it is for an ablation of arXiv 2405.17381 (tables 4 to 12).

    Attributes:
      vocab_size: V, number of tokens in the vocabulary.
      num_layers: L, number of layers.
      model_dim: D, width of the model.
      num_heads: H, number of heads; each has D / H features.
      glu_dim: F, the inner width of the channel mixer.
      lrpe_layers: indices of the layers with LRPE; the paper and the released models use the first layer only.
      sinusoidal_position: add absolute positions to the embeddings.
      activation: activation of queries and keys: "silu", "1+elu", "2+elu", "elu", "relu", "gelu", "identity" and
        others, the names of `ops.activation`.
      scale_embedding: multiply embeddings by sqrt(D).
      tie_embeddings: use the embedding as the output projection.
      decay: "released" or "paper" (`ops.decay`), or "none"; weights trained with one are wrong under the others.
      decay_temperature: let the decay weaken with depth; otherwise every layer has that of the first.
      use_gate: use the output gate u of the attention, one D x D projection per layer.
      glu_activation: activation of the channel mixer's gate, "identity" or "silu".
      norm: "simple_rms_norm", or with parameters "rms_norm" (scales) or "layer_norm" (scales and biases).
      norm_eps: eps of every norm.
      init_std: standard deviation of all projections and of the embedding at initialisation.
      pad_token_id: token whose embedding is initialised to zero.
      dtype: dtype of the computation: "bfloat16", "float16" or "float32". States are always float32.
      param_dtype: dtype of the parameters.
      remat: what the backward pass recomputes. "none": nothing; "dots": everything except matrix products with weights;
        "full": whole blocks.
      backend: backend of `ops.linear_attention`: "auto", "recurrent", "quadratic", "associative_scan", "chunked",
        "chunked_associative_scan", "pallas_tpu", "pallas_gpu" or "triton".
      scan_layers: run identical layers as one scan over stacked parameters, so that compile time does not grow with
        depth; otherwise each layer has its own parameters, which a CPU reads in place (`models.unstack_layers`).
    """

    vocab_size: int = 64000
    num_layers: int = 24
    model_dim: int = 1024
    num_heads: int = 8
    glu_dim: int = 2816
    lrpe_layers: tuple[int, ...] = (0,)
    sinusoidal_position: bool = False
    activation: str = "silu"
    use_bias: bool = False
    scale_embedding: bool = True
    tie_embeddings: bool = True
    decay: str = "released"
    decay_temperature: bool = True
    use_gate: bool = True
    glu_activation: str = "identity"
    norm: str = "simple_rms_norm"
    norm_eps: float = 1e-6
    init_std: float = 0.02
    pad_token_id: int = 0
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: str = "none"
    backend: str = "auto"
    scan_layers: bool = True

    choices: ClassVar[Mapping[str, Collection[str]]] = {
        "decay": ("released", "paper", "none"),
        "norm": ("simple_rms_norm", "rms_norm", "layer_norm"),
        "glu_activation": ("identity", "silu"),
        "remat": ("none", "dots", "full"),
    }
    may_be_zero = ("pad_token_id",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "tiny": _size(2, 64, 2) | {"vocab_size": 259, "dtype": "float32"},
        "385m": _size(24, 1024, 8),
        "1b": _size(16, 2048, 16),
        "3b": _size(32, 2560, 20),
        "7b": _size(30, 4096, 32),
        "13b": _size(36, 5120, 40),
        "65b": _size(72, 8192, 64),
        "175b": _size(88, 12288, 96),
    }
    """The released models are 385m, 1b and 7b; 3b, 13b, 65b and 175b are the paper's, where the published facts leave
    the width of the channel mixer open and 2.75 D, the released ratio, is used."""

    def __post_init__(self) -> None:
        """Raises UserError where the fields do not fit together."""
        object.__setattr__(self, "lrpe_layers", tuple(sorted(self.lrpe_layers)))
        check_fields(self, self.choices, may_be_zero=self.may_be_zero)
        if self.pad_token_id >= self.vocab_size:
            raise UserError(f"pad_token_id={self.pad_token_id} must be less than vocab_size={self.vocab_size}.")
        if self.model_dim % self.num_heads:
            raise UserError(f"model_dim={self.model_dim} must be a multiple of num_heads={self.num_heads}.")
        if not set(self.lrpe_layers) <= set(range(self.num_layers)):
            raise UserError(f"lrpe_layers={self.lrpe_layers} must be in 0 ... {self.num_layers - 1}.")

    @property
    def attentions(self) -> tuple[str, ...]:
        """The token mixer of each layer, with LRPE or without."""
        return tuple("lightning_lrpe" if i in self.lrpe_layers else "lightning" for i in range(self.num_layers))

    @property
    def feed_forward_dim(self) -> int:
        """F."""
        return self.glu_dim

    @property
    def position(self) -> str:
        """Absolute positions."""
        return "sinusoidal" if self.sinusoidal_position else "none"

    @property
    def embedding_std(self) -> float:
        """Standard deviation of the embedding at initialisation."""
        return self.init_std

    @property
    def linear_key_dims(self) -> tuple[int, ...]:
        """K, twice as many with LRPE."""
        names = sorted(set(self.attentions))
        return tuple(self.head_dim * (2 if name == "lightning_lrpe" else 1) for name in names)

    def log_decays(self) -> np.ndarray:
        """The log of what each head keeps of its state from token to token, [L, H] float32."""
        if self.decay == "none":
            return np.zeros((self.num_layers, self.num_heads), np.float32)
        form = released_log_decay if self.decay == "released" else paper_log_decay
        log_decay = form(self.num_heads, self.num_layers)
        return log_decay if self.decay_temperature else np.broadcast_to(log_decay[0], log_decay.shape)
