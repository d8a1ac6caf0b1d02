"""Feature maps that turn other attentions into linear ones: FAVOR+ of the Performer, and cosFormer's.

Both go with `normalized_linear_attention`, and both are non-negative, so that its denominator is positive.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.ops.position import lrpe

# A floor under every feature, so that a key far from all random directions still counts and no denominator is 0.
_FLOOR = 1e-4
# exp(60) times a long row of such features is still a float32.
_LARGEST_EXPONENT = 60.0


def orthogonal_gaussian(key: Array, num_features: int, head_dim: int) -> Float[Array, "M K"]:
    """Random directions for `favor_features` (arXiv 2009.14794, section 2.4).

    Each row is Gaussian by itself; rows within a run of K are orthogonal to each other, which lowers the variance.

    Args:
      key: a random key.
      num_features: M.
      head_dim: K.

    Returns:
      [M, K] float32.
    """
    direction_key, length_key = jax.random.split(key)
    directions = jax.random.orthogonal(direction_key, head_dim, (-(-num_features // head_dim),))
    lengths = jnp.linalg.norm(jax.random.normal(length_key, (num_features, head_dim)), axis=-1, keepdims=True)
    return directions.reshape(-1, head_dim)[:num_features] * lengths


def favor_features(
    x: Float[Array, "B N H K"], directions: Float[Array, "M K"], *, is_query: bool
) -> Float[Array, "B N H M"]:
    """Positive random features whose products are, in the mean over the directions, exp(q . k / sqrt(K)).

    FAVOR+ (arXiv 2009.14794, lemma 1): exp(w . x - |x|^2 / 2) / sqrt(M) on x / K^(1/4), for each row w.

    What is subtracted in the exponent against overflow must cancel in the attention:

    - A query subtracts its own largest exponent, which is in both its numerator and its denominator.
    - Keys share sums, so they must subtract the same number. The largest exponent over the tokens, as in the authors'
      code, would show the present the future, and would differ with padding, packing and sharding. But
      w . x - |x|^2 / 2 <= |w|^2 / 2 whatever x is, and its exponential is 1 in the mean over w. So keys subtract only
      what the directions themselves could bring above 60, which for heads of up to about 64 features is nothing.

    Args:
      x: [B, N, H, K] queries or keys, bfloat16 or float32 (the range of float16 is too small).
      directions: [M, K], of `orthogonal_gaussian`.
      is_query: whether `x` are queries.

    Returns:
      [B, N, H, M] in the dtype of `x`, positive.
    """
    wide, directions = x.astype(jnp.float32) * x.shape[-1] ** -0.25, directions.astype(jnp.float32)
    exponent = jnp.einsum("bnhk,mk->bnhm", wide, directions)
    if is_query:
        exponent -= jnp.max(exponent, axis=-1, keepdims=True)
    else:
        highest = jnp.max(jnp.sum(jnp.square(directions), axis=-1)) / 2
        exponent -= jnp.sum(jnp.square(wide), axis=-1, keepdims=True) / 2
        exponent -= jnp.maximum(highest - _LARGEST_EXPONENT, 0)
    return ((jnp.exp(exponent) + _FLOOR) * directions.shape[0] ** -0.5).astype(x.dtype)


def cosformer_features(
    x: Float[Array, "B N H K"], position: Int[Array, "#B N"], horizon: int
) -> Float[Array, "B N H 2*K"]:
    """[relu(x) cos(pi i / 2m), relu(x) sin(pi i / 2m)], i = position + 1, m = horizon (arXiv 2202.08791, eq. 10).

    Products of such queries and keys are relu(q_i) . relu(k_j) cos(pi (i - j) / 2m).

    Args:
      x: [B, N, H, K] queries or keys.
      position: [B, N] or [1, N] int32, less than `horizon`; from there on, features and weights may be negative.
      horizon: m. The paper takes the length of the row. Here it is the greatest length, once and for all:
        otherwise the weight of a pair would change with every token that follows, and a state could not be carried on.

    Returns:
      [B, N, H, 2K] in the dtype of `x`.
    """
    theta = jnp.full(x.shape[2:], np.pi / (2 * horizon), jnp.float32)
    return lrpe(jax.nn.relu(x), theta, position + 1)
