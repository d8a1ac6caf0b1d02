"""cosFormer's attention: relu features, weighted by the cosine of the distance."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models import MIXERS, TransNormerConfig
from transnormer_jax.papers.mixers.linear_transformer import LinearTransformerAttention
from transnormer_jax.papers.ops import cosformer_features


class CosformerAttention(LinearTransformerAttention):
    """Linear attention with weights relu(q_i) . relu(k_j) cos(pi (i - j) / 2m) (arXiv 2202.08791).

    Attributes:
      horizon: m, the greatest length of a document (see `ops.cosformer_features`), besides the attributes of
        `LinearTransformerAttention`.
    """

    horizon: int = 512

    def features(
        self, q: Float[Array, "B N H K"], k: Float[Array, "B N H K"], positions: TokenPositions
    ) -> tuple[Float[Array, "B N H 2*K"], Float[Array, "B N H 2*K"]]:
        """relu(q) and relu(k), each times a cosine and a sine of its place."""
        return cosformer_features(q, positions.position, self.horizon), cosformer_features(
            k, positions.position, self.horizon
        )

    @nn.nowrap
    def num_features_of(self, head_dim: int) -> int:
        """A cosine and a sine for each of K."""
        return 2 * head_dim


@MIXERS.register("cosformer")
def _cosformer(config: TransNormerConfig, layer: int, **fields: Any) -> nn.Module:
    del layer
    return CosformerAttention(horizon=config.max_length, backend=config.backend, **fields)
