"""Positional encodings: LRPE of TransNormerLLM (a pair of waves), the parts of LRPE of TransNormer, and sinusoids."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.precision import wide_type


def lrpe(
    x: Float[Array, "B N H K"], theta: Float[Array, "H K"], position: Int[Array, "#B N"]
) -> Float[Array, "B N H 2*K"]:
    """Encodes queries or keys so that q_t . k_s = sum_j q_tj k_sj cos(theta_j (t - s)).

    LRPE with the cosine kernel (arXiv 2307.14995, section 3.1): [x cos(t theta), x sin(t theta)]. Only differences of
    positions matter.

    Args:
      x: [B, N, H, K], float32, bfloat16 or float16.
      theta: [H, K] float32, radians per token.
      position: [B, N] or [1, N] int32; every int32 is as exact as a small one.

    Returns:
      [B, N, H, 2K] in the dtype of `x`.
    """
    angle = angles(theta.astype(jnp.float32), position)
    x32 = x.astype(jnp.float32)
    return jnp.concatenate([x32 * jnp.cos(angle), x32 * jnp.sin(angle)], axis=-1).astype(x.dtype)


@jax.custom_jvp
def angles(theta: Float[Array, "*shape"], position: Int[Array, "#B N"]) -> Float[Array, "#B N *shape"]:
    """Angles theta * position modulo 2 pi, with an error below 1e-6 at every int32 position.

    A float32 product would be off by half a radian at 10^7. Instead, a frequency is the number of turns per token in
    fixed point, and integer products drop whole turns by themselves.

    Args:
      theta: radians per token, float32 (or float64, which is exact enough as it is).

    Returns:
      [B, N, *theta.shape] or [1, N, *theta.shape] in the dtype of `theta`; float32 angles are between -5 and 5.
    """
    position = jnp.expand_dims(position.astype(jnp.int32), range(2, 2 + theta.ndim))
    if theta.dtype == jnp.float64:
        return position * theta[None, None]
    steps, rest = (x[None, None] for x in _turns(theta))
    whole = (position * steps).astype(jnp.float32)
    return (whole + position.astype(jnp.float32) * rest) * np.float32(2 * np.pi / 2**32)


@angles.defjvp
def _angles_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    theta, position = primals
    float_position = jnp.expand_dims(position, range(2, 2 + theta.ndim)).astype(theta.dtype)
    return angles(theta, position), float_position * tangents[0][None, None]


# 1 / (2 pi) is 0.28B E60 DB9 391 054 in hexadecimal: five numbers of 12 bits.
_TURNS_PER_RADIAN = [
    np.float32(digits * 2.0**-shift)
    for digits, shift in ((0x28B, 12), (0xE60, 24), (0xDB9, 36), (0x391, 48), (0x054, 60))
]


def _turns(theta: Float[Array, "*shape"]) -> tuple[Int[Array, "*shape"], Float[Array, "*shape"]]:
    """Turns theta / (2 pi) modulo 1 in units of 2^-32: an int32, and the rest, at most 1/2, as a float32.

    Every floating-point operation except the last sum is exact (products are of 12 by 12 bits), so no compiler can
    change the result by reordering or fusing them.
    """
    high = jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(theta, jnp.int32) & np.int32(~0xFFF), jnp.float32)
    products = jnp.stack([half * x for half in (high, theta - high) for x in _TURNS_PER_RADIAN])

    def split(x: Array) -> tuple[Array, Array]:
        whole = jnp.round(x)
        return whole.astype(jnp.int32), x - whole

    _, fraction = split(products)
    upper, fraction = split(fraction * 2**16)
    lower, fraction = split(fraction * 2**16)
    carry, rest = split(jnp.sum(fraction, axis=0))
    return jnp.sum(upper * 2**16 + lower, axis=0, dtype=jnp.int32) + carry, rest


def lrpe_frequencies(num_heads: int, head_dim: int) -> np.ndarray:
    """Initial theta of `lrpe`: 10000^(-2 i / (H K)) for channel i of all heads, from 1 down to about 1e-8.

    The form of the released TransNormerLLM checkpoints (arXiv 2307.14995), which train it.

    Returns:
      [H, K] float32, radians per token.
    """
    channels = num_heads * head_dim
    return (10000.0 ** (-2.0 * np.arange(channels) / channels)).reshape(num_heads, head_dim).astype(np.float32)


def rotary(
    x: Float[Array, "B N H K"], theta: Float[Array, " K//2"], position: Int[Array, "#B N"]
) -> Float[Array, "B N H K"]:
    """Rotates each pair of neighbouring features, (x_0, x_1), (x_2, x_3), ..., by theta times the position.

    RoPE (arXiv 2104.09864, eq. 15). After `householder`, it is the LRPE of TransNormer (arXiv 2210.10340, "type 1d3").
    Products of rotated queries and keys depend only on differences of positions.

    Args:
      x: [B, N, H, K]; if K is odd, the last feature is left as it is.
      theta: [K // 2], radians per token, the same for all heads.
      position: [B, N] or [1, N] int32; every int32 is as exact as a small one.

    Returns:
      [B, N, H, K] in the dtype of `x`; the angles have at least float32.
    """
    dtype = wide_type(x)
    angle = angles(theta.astype(dtype), position)[:, :, None]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    paired = 2 * theta.shape[0]
    even, odd = x[..., 0:paired:2].astype(dtype), x[..., 1:paired:2].astype(dtype)
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    rotated = rotated.reshape(*x.shape[:3], paired).astype(x.dtype)
    return rotated if paired == x.shape[3] else jnp.concatenate([rotated, x[..., paired:]], axis=-1)


def rotary_frequencies(head_dim: int) -> np.ndarray:
    """Initial theta of `rotary` (arXiv 2104.09864) for K = `head_dim`, [K // 2] float32: 10000^(-2 i / K)."""
    return (10000.0 ** (-2.0 * np.arange(head_dim // 2) / head_dim)).astype(np.float32)


def householder(x: Float[Array, "*batch K"], v: Float[Array, " K"]) -> Float[Array, "*batch K"]:
    """Reflects each vector: x - 2 (x . v) v. With `rotary`, the LRPE of TransNormer (arXiv 2210.10340, "type 1d3").

    Args:
      v: [K], of length 1.

    Returns:
      [..., K] in the dtype of `x`; float32 at least inside.
    """
    dtype = wide_type(x)
    wide, v = x.astype(dtype), v.astype(dtype).reshape(*(1,) * (x.ndim - 1), -1)
    return (wide - 2 * jnp.sum(wide * v, axis=-1, keepdims=True) * v).astype(x.dtype)


def random_unit_vector(key: Array, shape: tuple[int, ...], dtype: Any) -> Float[Array, "..."]:
    """A uniformly random direction along the last axis: an initialiser for the vector of `householder`.

    TransNormer (arXiv 2210.10340) draws one for each attention and does not train it.

    Returns:
      [..., K], vectors of length 1.
    """
    x = jax.random.normal(key, shape, dtype)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def sinusoids(position: Int[Array, "#B N"], dim: int) -> Float[Array, "#B N {dim}"]:
    """Absolute positions as waves: [sin(t f_0), sin(t f_1), ..., cos(t f_0), ...], f_i = 10000^(-i / (dim / 2 - 1)).

    The form in which TransNormer's language models were trained; the order and the frequencies differ a little from
    arXiv 1706.03762, section 3.5.

    Args:
      dim: features, even, at least 4.

    Returns:
      [B, N, dim] or [1, N, dim], float32.

    Raises:
      UserError: `dim` is odd or less than 4.
    """
    if dim % 2 or dim < 4:
        raise UserError(f"{dim} features cannot hold sinusoids: choose an even number of at least 4.")
    frequencies = 10000.0 ** (-np.arange(dim // 2) / (dim // 2 - 1))
    angle = angles(jnp.asarray(frequencies, jnp.float32), position)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
