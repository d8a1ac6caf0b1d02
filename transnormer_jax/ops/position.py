"""LRPE, the linearized relative positional encoding of TransNormerLLM."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def lrpe(
    x: Float[Array, "B N H K"], theta: Float[Array, "H K"], position: Int[Array, "#B N"]
) -> Float[Array, "B N H 2*K"]:
    """Encodes queries or keys so that q_t . k_s = sum_j q_tj k_sj cos(theta_j (t - s)).

    LRPE with the cosine kernel (arXiv 2307.14995, section 3.1): [x cos(t theta), x sin(t theta)]. Only differences of
    positions matter.

    Args:
      x: [B, N, H, K], float32, bfloat16 or float16.
      theta: [H, K] float32, radians per token.
      position: [B, N] or [1, N] int32. Angles are float32: bfloat16 positions would be rounded above 256.

    Returns:
      [B, N, H, 2K] in the dtype of `x`.
    """
    angle = position[..., None, None].astype(jnp.float32) * theta.astype(jnp.float32)[None, None]
    x32 = x.astype(jnp.float32)
    return jnp.concatenate([x32 * jnp.cos(angle), x32 * jnp.sin(angle)], axis=-1).astype(x.dtype)


def lrpe_frequencies(num_heads: int, head_dim: int) -> np.ndarray:
    """Initial theta, [H, K] float32: 10000^(-2 i / (H K)) for channel i of all heads, from 1 down to about 1e-8."""
    channels = num_heads * head_dim
    return (10000.0 ** (-2.0 * np.arange(channels) / channels)).reshape(num_heads, head_dim).astype(np.float32)
