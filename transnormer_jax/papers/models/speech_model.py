"""Speech: frames to phones."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.layers import TokenPositions
from transnormer_jax.models.block import Stack, dropout
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.ops import sinusoids
from transnormer_jax.papers.models.bilstm import BiLSTM, BiLSTMConfig
from transnormer_jax.papers.models.dense import dense


class SpeechModel(nn.Module):
    """Frames to phones: logits for CTC, by a stack of blocks or by a BiLSTM (arXiv 2006.16236, section 4.3).

    Attributes:
      config: of the stack or of the BiLSTM; its kind says which.
      num_labels: labels without the blank, which is class 0 of num_labels + 1.
    """

    config: ModelConfig | BiLSTMConfig
    num_labels: int

    def __post_init__(self) -> None:
        """Raises UserError for positions that frames cannot have."""
        super().__post_init__()
        if isinstance(self.config, ModelConfig) and self.config.position not in ("none", "sinusoidal"):
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
            positions = TokenPositions(jnp.arange(frames.shape[1], dtype=jnp.int32)[None], segment_ids)
            x = dense(config, config.model_dim, "frames")(frames.astype(config.dtype))
            if config.position != "none":
                x = x + sinusoids(positions.position, config.model_dim).astype(x.dtype)
            x, _ = Stack(config, name="stack")(dropout(self, x), positions)
        return dense(config, self.num_labels + 1, "head")(x).astype(jnp.float32)
