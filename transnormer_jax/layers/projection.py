"""A dense layer whose matrix, divided over a mesh where it is stored, is gathered where it is used."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from transnormer_jax.distributed import constrain


def projection(
    features: int,
    names: tuple[str, str],
    *,
    use_bias: bool,
    init_std: float,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    name: str,
) -> nn.Dense:
    """The layer x W + b.

    Args:
      features: width of the result.
      names: of the dimensions of W [in, out], for `distributed.rules`; "embed" is gathered.
      use_bias: whether there is b.
      init_std: standard deviation of W at initialisation.
      dtype: of the computation.
      param_dtype: of the parameters.
      name: of the layer.
    """

    def dot_general(x: jax.Array, kernel: jax.Array, *arguments: Any, **options: Any) -> jax.Array:
        # Left to itself, XLA may make the product a loop over the parts of W, which by its own estimate takes longer.
        gathered = constrain(kernel, *(None if name == "embed" else name for name in names))
        return jax.lax.dot_general(x, gathered, *arguments, **options)

    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=nn.initializers.normal(init_std),
        dot_general=dot_general,
        name=name,
    )
