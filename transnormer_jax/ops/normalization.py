"""SimpleRMSNorm: an RMS norm without parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def simple_rms_norm(x: Float[Array, "*batch D"], eps: float = 1e-6) -> Float[Array, "*batch D"]:
    """Divides each vector by its root mean square: `x / sqrt(mean(x^2) + eps)`.

    TransNormerLLM (arXiv 2307.14995, eq. 14), with eps inside the root as the released checkpoints have it.

    Args:
      x: [..., D], float32, bfloat16 or float16. The statistics are float32.
      eps: added to the mean square.

    Returns:
      [..., D] in the dtype of `x`.
    """
    x32 = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
    return (x32 * jax.lax.rsqrt(mean_square + eps)).astype(x.dtype)
