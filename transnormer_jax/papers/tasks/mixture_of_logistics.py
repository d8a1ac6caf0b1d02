"""Bytes as bins of a mixture of logistic distributions: the output of autoregressive image models.

PixelCNN++ (arXiv 1701.05517, section 2.1), as the Linear Transformer uses it (arXiv 2006.16236, section 4.2). Bytes are
scaled to [-1, 1], where a bin is 2 / 255 wide; the first and the last bin reach to infinity.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_HALF_BIN = 1 / 255
_MIN_LOG_SCALE = -7.0
_LOG_MIN_MASS = math.log(1e-5)


def mixture_of_logistics_nll(raw: Float[Array, "*batch 3*M"], target: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Negative log-probability of each byte, in nats.

    A bin's probability is the difference of the logistic's CDF at its edges; below 1e-5 it is the density at its centre
    times its width, as in the published code. Value and gradient are finite wherever squares of `raw` are.

    Args:
      raw: [..., 3M] of a model: M logits, then M means, then M log-scales, which count as -7 where they are less.
      target: [...] int32, 0 ... 255.

    Returns:
      [...] float32.
    """
    logits, mean, log_scale = _components(raw)
    byte = target[..., None]
    inverse_scale = jnp.exp(-log_scale)
    centre = (byte * (2 * _HALF_BIN) - 1 - mean) * inverse_scale
    half = _HALF_BIN * inverse_scale
    lower, upper = centre - half, centre + half
    # sigmoid(upper) - sigmoid(lower) = sigmoid(upper) sigmoid(-lower) (1 - exp(lower - upper)), which does not cancel.
    # A width that rounds to 0 belongs to the density; it must not reach the logarithm, whose gradient would be NaN.
    width = jnp.where(half > 1e-30, 2 * half, 1.0)
    inside = jax.nn.log_sigmoid(upper) + jax.nn.log_sigmoid(-lower) + jnp.log(-jnp.expm1(-width))
    density = jax.nn.log_sigmoid(centre) + jax.nn.log_sigmoid(-centre) - log_scale + math.log(2 * _HALF_BIN)
    inside = jnp.where((half > 1e-30) & (inside > _LOG_MIN_MASS), inside, density)
    log_mass = jnp.where(
        byte == 0, jax.nn.log_sigmoid(upper), jnp.where(byte == 255, jax.nn.log_sigmoid(-lower), inside)
    )
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_mass, axis=-1)


def sample_mixture_of_logistics(key: Array, raw: Float[Array, "*batch 3*M"]) -> Int[Array, "*batch"]:
    """Draws a byte from each mixture, [...] int32.

    The scale is exp(log-scale), so samples follow the distribution that `mixture_of_logistics_nll` scores. The Linear
    Transformer's published sampler uses 1.0001 + elu(log-scale) instead, and draws from another one.

    Args:
      key: of the random numbers.
      raw: [..., 3M], as for `mixture_of_logistics_nll`.
    """
    component_key, value_key = jax.random.split(key)
    logits, mean, log_scale = _components(raw)
    component = jax.random.categorical(component_key, logits)[..., None]
    mean, log_scale = (jnp.take_along_axis(x, component, axis=-1)[..., 0] for x in (mean, log_scale))
    value = mean + jnp.exp(log_scale) * jax.random.logistic(value_key, mean.shape)
    return _to_byte(value)


def likeliest_mean(raw: Float[Array, "*batch 3*M"]) -> Int[Array, "*batch"]:
    """The byte at the mean of the component with the largest weight, [...] int32; `raw` is [..., 3M]."""
    logits, means, _ = _components(raw)
    return _to_byte(jnp.take_along_axis(means, jnp.argmax(logits, axis=-1, keepdims=True), axis=-1)[..., 0])


def _to_byte(value: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
    return jnp.round((jnp.clip(value, -1, 1) + 1) / (2 * _HALF_BIN)).astype(jnp.int32)


def _components(raw: Float[Array, "*batch 3*M"]) -> tuple[Float[Array, "*batch M"], ...]:
    logits, mean, log_scale = jnp.split(raw.astype(jnp.float32), 3, axis=-1)
    return logits, mean, jnp.maximum(log_scale, _MIN_LOG_SCALE)
