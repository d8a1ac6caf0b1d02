"""The Performer's attention: softmax attention estimated with random features."""

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from transnormer_jax.layers.linear_transformer_attention import LinearTransformerAttention
from transnormer_jax.layers.places import Places
from transnormer_jax.ops import favor_features, orthogonal_gaussian


class PerformerAttention(LinearTransformerAttention):
    """Linear attention with the positive random features of FAVOR+ (arXiv 2009.14794).

    The directions are drawn at initialisation, kept with the parameters and not trained; heads share them. The features
    are computed in float32; a `dtype` of float16 lacks their range.

    Attributes:
      num_features: M random directions, besides the attributes of `LinearTransformerAttention`.
    """

    num_features: int = 64

    def features(
        self, q: Float[Array, "B N H K"], k: Float[Array, "B N H K"], places: Places
    ) -> tuple[Float[Array, "B N H M"], Float[Array, "B N H M"]]:
        """FAVOR+ of q and k."""
        del places
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
