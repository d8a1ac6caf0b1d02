"""A dense layer whose matrix may be divided over a mesh where it is stored, or rounded to int8."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.distributed import constrain


class Projection(nn.Module):
    """The layer x W + b.

    Attributes:
      features: width of the result.
      names: of the dimensions of W [in, out], for `distributed.rules`; "embed" is gathered where W is used.
      use_bias: whether there is b.
      init_std: standard deviation of W at initialisation.
      dtype: of the computation.
      param_dtype: of the parameters.
    """

    features: int
    names: tuple[str, str]
    use_bias: bool
    init_std: float
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Projects the last axis of `x`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(self.init_std), shape, self.param_dtype)
        # Left to itself, XLA may make the product a loop over the parts of W, which by its own estimate takes longer.
        gathered = constrain(kernel.astype(self.dtype), *(None if name == "embed" else name for name in self.names))
        y = jnp.dot(x.astype(self.dtype), gathered)
        vector = (1,) * (y.ndim - 1) + (self.features,)
        if self.has_variable("params", "kernel_scale"):  # W is int8, see `inference.quantization`.
            y *= self.get_variable("params", "kernel_scale").astype(self.dtype).reshape(vector)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y += bias.astype(self.dtype).reshape(vector)
        return y
