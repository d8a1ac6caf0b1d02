"""SGLU, the channel mixer of TransNormerLLM."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.distributed import constrain
from transnormer_jax.layers.projection import Projection
from transnormer_jax.ops import activation


class SimpleGLU(nn.Module):
    """y = W_out ((W_gate x) * (W_value x)), a gated linear unit without activation (arXiv 2307.14995, section 3.3).

    For an ablation, the gate can have one.

    Attributes:
      glu_dim: F, the inner width.
      use_bias: biases in the three projections.
      init_std: standard deviation of the projections at initialisation.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
      activation: of the gate, a name of `ops.activation`.
    """

    glu_dim: int
    use_bias: bool
    init_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype
    activation: str = "identity"

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Mixes the channels of each token."""
        dense = functools.partial(
            Projection,
            use_bias=self.use_bias,
            init_std=self.init_std,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )

        def project(name: str) -> Float[Array, "B N F"]:
            return constrain(dense(self.glu_dim, ("embed", "mlp"), name=name)(x), "batch", "sequence", "mlp")

        out = dense(x.shape[-1], ("mlp", "embed"), name="out")
        return out(activation(self.activation)(project("gate")) * project("value"))
