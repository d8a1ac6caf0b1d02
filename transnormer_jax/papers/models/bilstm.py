"""A bidirectional LSTM, the recurrent baseline of speech recognition."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.models import ARCHITECTURES
from transnormer_jax.models.presets import check_fields


@ARCHITECTURES.register("bilstm")
@dataclasses.dataclass(frozen=True)
class BiLSTMConfig:
    """Everything that fixes a BiLSTM. The defaults are the Linear Transformer's baseline (arXiv 2006.16236, 4.3).

    Attributes:
      num_layers: L, number of layers.
      hidden_dim: features in each direction.
      dropout: dropout rate on the input of each layer but the first; applied only where the caller gives a "dropout"
        key, as training does.
      dtype: dtype of the computation; the memory of the cells is `param_dtype`.
      param_dtype: dtype of the parameters.
    """

    num_layers: int = 3
    hidden_dim: int = 320
    dropout: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Raises UserError for numbers that make no model."""
        check_fields(self, {})

    @property
    def model_dim(self) -> int:
        """The width that a mesh divides."""
        return self.hidden_dim


class BiLSTM(nn.Module):
    """Layers of two LSTMs (Hochreiter & Schmidhuber 1997), one in each direction of time, side by side.

    Every frame sees all real frames of its row, and no padding in either direction.

    Attributes:
      config: sizes and dtypes.
    """

    config: BiLSTMConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"], segment_ids: Int[Array, "B N"]) -> Float[Array, "B N 2*hidden"]:
        """Maps frames [B, N, D] to [B, N, 2 hidden].

        Args:
          x: [B, N, D].
          segment_ids: [B, N] int32, 1 at the frames of a row and then 0 at its padding.

        Returns:
          [B, N, 2 hidden] in `dtype`, forward features first; zero at padding.
        """
        config = self.config
        real = segment_ids[..., None] != 0
        lengths = jnp.sum(segment_ids != 0, axis=1)
        x = jnp.where(real, x, 0).astype(config.dtype)
        for layer in range(config.num_layers):
            if layer:
                x = nn.Dropout(config.dropout, deterministic=not self.has_rng("dropout"))(x)
            forward, backward = (
                nn.RNN(
                    nn.OptimizedLSTMCell(
                        config.hidden_dim,
                        dtype=jnp.dtype(config.dtype),
                        param_dtype=jnp.dtype(config.param_dtype),
                        parent=None,
                    ),
                    name=f"{direction}_{layer}",
                )
                for direction in ("forward", "backward")
            )
            both: Any = nn.Bidirectional(forward, backward)(x, seq_lengths=lengths)
            x = jnp.where(real, both, 0).astype(config.dtype)
        return x
