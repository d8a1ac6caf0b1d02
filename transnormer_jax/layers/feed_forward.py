"""What follows the attention in a block, on each token by itself: a gated linear unit, or two projections."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops import activation

# Uniform in +-1 / sqrt(fan in), as the published models began.
_KERNEL_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class GatedFeedForward(nn.Module):
    """y = W_out (act(W_gate x) * (W_value x)), all with biases: the GLU of TransNormer (arXiv 2210.10340, section 4.3).

    Attributes:
      feed_forward_dim: F, the inner width.
      activation: of the gate. "identity" is what the authors' code does from October 2022 on.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
    """

    feed_forward_dim: int
    activation: str = "silu"
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Mixes the channels of each token."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=_KERNEL_INIT)
        gate = activation(self.activation)(dense(self.feed_forward_dim, name="gate")(x))
        return dense(x.shape[-1], name="out")(gate * dense(self.feed_forward_dim, name="value")(x))


class FeedForward(nn.Module):
    """y = W_out act(W_in x), with biases (arXiv 1706.03762, section 3.3).

    Attributes:
      feed_forward_dim: F, the inner width.
      activation: "relu", or "gelu" in its exact form.
      dtype: of the computation; parameters are `param_dtype`.
      param_dtype: of the parameters.
    """

    feed_forward_dim: int
    activation: str = "relu"
    dtype: jnp.dtype = jnp.dtype("float32")
    param_dtype: jnp.dtype = jnp.dtype("float32")

    @nn.compact
    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Mixes the channels of each token."""
        dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.param_dtype, kernel_init=_KERNEL_INIT)
        inner = activation(self.activation)(dense(self.feed_forward_dim, name="in")(x))
        return dense(x.shape[-1], name="out")(inner)
