"""The dense layer of all models. Its kernel may be sharded, or int8."""

import math
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.distributed import constrain

_XAVIER = nn.initializers.xavier_uniform()


class Projection(nn.Module):
    """The layer x W + b.

    Attributes:
      names: of the dimensions of W [in, out], for `distributed.rules`; "embed" is gathered where W is used.
    """

    features: int
    names: tuple[str, str]
    use_bias: bool
    kernel_init: nn.initializers.Initializer
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "*batch in"]) -> Float[Array, "*batch out"]:
        """Projects the last axis of `x`."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        # Left to itself, XLA may make the product a loop over the shards of W, which by its own estimate takes longer.
        gathered = constrain(kernel.astype(self.dtype), *(None if name == "embed" else name for name in self.names))
        y = jnp.dot(x.astype(self.dtype), gathered)
        vector = (1,) * (y.ndim - 1) + (self.features,)
        if self.has_variable("params", "kernel_scale"):  # W is int8, see `inference.quantization`.
            y *= self.get_variable("params", "kernel_scale").astype(self.dtype).reshape(vector)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
            y += bias.astype(self.dtype).reshape(vector)
        return constrain(y, "batch", "sequence", self.names[1]) if y.ndim == 3 and self.names[1] != "embed" else y


def project_heads(
    names: Iterable[str],
    x: Float[Array, "B N D"],
    num_heads: int,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    kernel_init: nn.initializers.Initializer = _XAVIER,
    head_dim: int | None = None,
) -> tuple[Float[Array, "B N H K"], ...]:
    """Projects tokens once for each name, with a bias, and splits the features into H heads of K, by default D / H.

    For use inside a compact method.
    """
    head_dim = head_dim or x.shape[-1] // num_heads
    with jax.named_scope("heads"):
        dense = (
            Projection(num_heads * head_dim, ("embed", "heads"), True, kernel_init, dtype, param_dtype, name=name)
            for name in names
        )
        return tuple(project(x).reshape(*x.shape[:2], num_heads, head_dim) for project in dense)


def project_out(
    out: Float[Array, "B N H K"] | Float[Array, "B N H*K"],
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    features: int | None = None,
) -> Float[Array, "B N D"]:
    """Projects the heads, side by side, to D features with a bias; by default D = H K. For use in a compact method."""
    out = out.reshape(*out.shape[:2], math.prod(out.shape[2:]))
    features = features or out.shape[-1]
    return Projection(features, ("heads", "embed"), True, _XAVIER, dtype, param_dtype, name="out")(out)
