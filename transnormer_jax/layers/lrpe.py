"""TransNormer's position encoding of queries and keys. For use inside a compact method."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from transnormer_jax.ops import householder, random_unit_vector, rotary, rotary_frequencies


def reflect_and_rotate(
    module: nn.Module, q: Float[Array, "B N H K"], k: Float[Array, "B N H K"], position: Int[Array, "#B N"]
) -> tuple[Float[Array, "B N H K"], Float[Array, "B N H K"]]:
    """LRPE "1d3" (arXiv 2210.10340, section 4): a fixed reflection, then a rotation by trained angles.

    The parameters are chosen so that no optimizer's weight decay does harm: an offset of 0 is the initial angle, and
    the length of the reflection's vector does not matter.
    """
    head_dim, dtype = q.shape[-1], module.param_dtype
    offset = module.param("theta_offset", nn.initializers.zeros, (head_dim // 2,), dtype)
    theta = jnp.asarray(rotary_frequencies(head_dim)) + offset.astype(jnp.promote_types(dtype, jnp.float32))
    vector = jax.lax.stop_gradient(module.param("householder", random_unit_vector, (head_dim,), dtype))
    largest = jnp.max(jnp.abs(vector))
    length = largest * jnp.linalg.norm(vector / largest)  # squares of a tiny vector would be 0
    # As in the authors' code, a vector of length 1 but for rounding is used as it is.
    vector = jnp.where(jnp.abs(length - 1) < 1e-4, vector, vector / length)
    q, k = (rotary(householder(x, vector), theta, position) for x in (q, k))
    return q, k
