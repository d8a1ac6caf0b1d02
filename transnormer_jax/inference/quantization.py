"""Int8 weights for generation, where reading the weights dominates: a quarter of the bytes of float32."""

from typing import Any

import jax
import jax.numpy as jnp

# The axis that a scale spans: that of the inputs of a matrix [..., in, out], and the features of a table [V, D].
_SPANNED = {"kernel": -2, "embedding": -1, "head": -1}


@jax.jit
def quantize(params: Any) -> Any:
    """Rounds the matrices of a TransNormerLLM to int8, each output (each token of a table) with a scale of its own.

    W is int8(W / s) s with s = max |W| / 127 over the inputs of an output, as in LLM.int8() (arXiv 2208.07339, section
    2.1) without outliers. Activations are not rounded. A layer's product is of the int8 numbers at the dtype of the
    computation; the scales, float32 under `NAME_scale`, are applied to its result.

    Returns:
      The parameters for `Generator`, `ContinuousBatch` or the model itself, in their place.
    """
    quantized = {}
    for name, leaf in params.items():
        if isinstance(leaf, dict):
            quantized[name] = quantize(leaf)
        elif name in _SPANNED:
            wide = leaf.astype(jnp.float32)
            # An output of zeros alone has any scale.
            scale = jnp.maximum(jnp.max(jnp.abs(wide), axis=_SPANNED[name]), 1e-30) / 127
            quantized[name] = jnp.round(wide / jnp.expand_dims(scale, _SPANNED[name])).astype(jnp.int8)
            quantized[f"{name}_scale"] = scale
        else:
            quantized[name] = leaf
    return quantized
