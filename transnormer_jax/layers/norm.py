"""The norms of all models, by name."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops import simple_rms_norm, transnormer_rms_norm

_FUNCTIONS = ("simple_rms_norm", "transnormer_rms_norm")
_MODULES = {"rms_norm": nn.RMSNorm, "layer_norm": nn.LayerNorm}


def make_norm(
    norm: str, eps: float, dtype: jnp.dtype, param_dtype: jnp.dtype, name: str
) -> Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]:
    """A norm over the last axis: a function, or a module `name` that has parameters.

    Args:
      norm: "simple_rms_norm" (of TransNormerLLM), "transnormer_rms_norm", "rms_norm" (scales) or "layer_norm" (scales
        and biases).
      eps: added to the mean square or to the variance.
      dtype: of the result; statistics are float32.

    Returns:
      A function or module from [B, N, D] to [B, N, D].

    Raises:
      UserError: the norm is unknown.
    """
    if norm == "simple_rms_norm":
        return functools.partial(simple_rms_norm, eps=eps)
    if norm == "transnormer_rms_norm":
        return transnormer_rms_norm
    if norm not in _MODULES:
        raise UserError(f"unknown norm {norm!r}: {did_you_mean(norm, (*_FUNCTIONS, *_MODULES))}")
    return _MODULES[norm](epsilon=eps, dtype=dtype, param_dtype=param_dtype, name=name)
