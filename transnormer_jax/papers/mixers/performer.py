"""The Performer's attention: softmax attention estimated with random features."""

from typing import Any

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.models import MIXERS, ModelConfig
from transnormer_jax.papers.config import baseline_options
from transnormer_jax.papers.mixers.linear_transformer import LinearTransformerAttention
from transnormer_jax.papers.ops import favor_features, orthogonal_gaussian


class PerformerAttention(LinearTransformerAttention):
    """Linear attention with the positive random features of FAVOR+ (arXiv 2009.14794).

    The directions are drawn at initialisation, kept with the parameters and not trained; heads share them. The features
    are computed in float32; a `dtype` of float16 lacks their range.

    Attributes:
      num_features: M random directions, besides the attributes of `LinearTransformerAttention`.
    """

    num_features: int = 64

    def features(
        self, q: Float[Array, "B N H K"], k: Float[Array, "B N H K"], positions: TokenPositions
    ) -> tuple[Float[Array, "B N H M"], Float[Array, "B N H M"]]:
        """FAVOR+ of q and k."""
        del positions
        directions = self.param(
            "directions",
            lambda key: orthogonal_gaussian(key, self.num_features, q.shape[-1]).astype(self.param_dtype),
        )
        directions = jax.lax.stop_gradient(directions)
        return favor_features(q, directions, is_query=True), favor_features(k, directions, is_query=False)

    @nn.nowrap
    def num_features_of(self, head_dim: int) -> int:
        """M, whatever K is."""
        del head_dim
        return self.num_features


@MIXERS.register("performer")
def _performer(config: ModelConfig, layer: int, **fields: Any) -> nn.Module:
    del layer
    return PerformerAttention(
        num_features=baseline_options(config).performer_features, backend=config.backend, **fields
    )
