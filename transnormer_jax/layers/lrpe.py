"""TransNormer's position encoding of queries and keys."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops import householder, random_unit_vector, rotary, rotary_frequencies


def lrpe_parameters(module: nn.Module, head_dim: int) -> tuple[Float[Array, " K/2"], Float[Array, " K"]]:
    """Declares, inside a compact method, the two parameters of `reflect_and_rotate`."""
    offset = module.param("theta_offset", nn.initializers.zeros, (head_dim // 2,), module.param_dtype)
    vector = module.param("householder", random_unit_vector, (head_dim,), module.param_dtype)
    return offset, vector


def reflect_and_rotate(
    x: Float[Array, "B N H K"],
    offset: Float[Array, " K/2"],
    vector: Float[Array, " K"],
    position: Int[Array, "#B N"],
) -> Float[Array, "B N H K"]:
    """LRPE "1d3" (arXiv 2210.10340, section 4): a fixed reflection, then a rotation by trained angles.

    No optimizer's weight decay does harm: an offset of 0 is the initial angle, and the length of the vector does not
    matter.
    """
    theta = jnp.asarray(rotary_frequencies(x.shape[-1])) + offset.astype(jnp.promote_types(offset.dtype, jnp.float32))
    vector = jax.lax.stop_gradient(vector)
    largest = jnp.max(jnp.abs(vector))
    length = largest * jnp.linalg.norm(vector / largest)  # squares of a tiny vector would be 0
    # As in the authors' code, a vector of length 1 but for rounding is used as it is.
    vector = jnp.where(jnp.abs(length - 1) < 1e-4, vector, vector / length)
    return rotary(householder(x, vector), theta, position)
