"""RMS norms without parameters: that of TransNormerLLM and that of TransNormer, which differ at small vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.precision import wide_type


def simple_rms_norm(x: Float[Array, "*batch D"], eps: float = 1e-6) -> Float[Array, "*batch D"]:
    """Divides each vector by its root mean square: `x / sqrt(mean(x^2) + eps)`.

    TransNormerLLM (arXiv 2405.17381, eq. 14), with eps inside the root as the released checkpoints have it.

    Args:
      x: [..., D]. The statistics are float32 at least.
      eps: added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(wide_type(x))
    return (wide * jax.lax.rsqrt(_mean_square(wide) + eps)).astype(x.dtype)


def transnormer_rms_norm(x: Float[Array, "*batch D"], eps: float = 1e-8) -> Float[Array, "*batch D"]:
    """Divides each vector by its root mean square: `x / (sqrt(mean(x^2)) + eps)`.

    The SimpleRMSNorm of TransNormer (arXiv 2210.10340), with eps outside the root as in the authors' code: the
    derivative at a zero vector is 1 / eps.

    Args:
      x: [..., D]. The statistics are float32 at least.
      eps: added to the root.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(wide_type(x))
    mean_square = _mean_square(wide)
    # The root has no derivative at 0. Both branches of `where` are differentiated, so neither may see that 0.
    root = jnp.where(mean_square > 0, jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1)), 0)
    return (wide / (root + eps)).astype(x.dtype)


def _mean_square(x: Float[Array, "*batch D"]) -> Float[Array, "*batch 1"]:
    return jnp.mean(jnp.square(x), axis=-1, keepdims=True)
