"""SimpleRMSNorm: an RMS norm without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def simple_rms_norm(
    x: Float[Array, "*batch D"], eps: float = 1e-6, *, eps_in_root: bool = True
) -> Float[Array, "*batch D"]:
    """Divides each vector by its root mean square: `x / sqrt(mean(x^2) + eps)`.

    TransNormerLLM (arXiv 2405.17381, eq. 14), with eps inside the root as the released checkpoints have it. With
    `eps_in_root=False` and eps = 1e-8, `x / (sqrt(mean(x^2)) + eps)`, the norm of TransNormer (arXiv 2210.10340).

    Args:
      x: [..., D]. The statistics are float32 at least.
      eps: added to the mean square, or to its root.
      eps_in_root: which of the two. Outside the root, the derivative at a zero vector is 1 / eps, not NaN.

    Returns:
      [..., D] in the dtype of `x`.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    if eps_in_root:
        return (wide * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)
    # The root has no derivative at 0. Both branches of `where` are differentiated, so neither may see that 0.
    root = jnp.where(mean_square > 0, jnp.sqrt(jnp.where(mean_square > 0, mean_square, 1)), 0)
    return (wide / (root + eps)).astype(x.dtype)
