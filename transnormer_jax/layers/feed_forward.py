"""The feed-forward layer: a gated linear unit, or two projections."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.layers.projection import Projection
from transnormer_jax.ops import activation

# Uniform in +-1 / sqrt(fan in), as the published models began.
_UNIFORM = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class FeedForward(nn.Module):
    """y = W_out (act(W_gate x) * (W_value x)) if gated, else y = W_out act(W_in x).

    Gated, with biases and silu, it is the GLU of TransNormer (arXiv 2210.10340, section 4.3); without biases and
    activation, the SGLU of TransNormerLLM (arXiv 2307.14995, section 3.3). Not gated, it is the Transformer's
    (arXiv 1706.03762, section 3.3).

    Attributes:
      dim: F, the inner width.
      activation: a name of `ops.activation`.
    """

    dim: int
    activation: str
    gated: bool = True
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = _UNIFORM
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Mixes the channels of each token."""
        dense = functools.partial(
            Projection,
            use_bias=self.use_bias,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        inner = functools.partial(dense, self.dim, ("embed", "mlp"))
        hidden = activation(self.activation)(inner(name="gate" if self.gated else "in")(x))
        if self.gated:
            hidden *= inner(name="value")(x)
        return dense(x.shape[-1], ("mlp", "embed"), name="out")(hidden)
