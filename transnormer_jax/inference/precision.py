"""The dtypes of parameters during generation."""

from typing import Any

import jax
import jax.numpy as jnp


def at_compute_dtype(params: Any, dtype: str) -> Any:
    """Rounds the parameters that the model rounds at each use: the same logits for half the bytes per token."""

    def cast(path: tuple[Any, ...], leaf: Any) -> jax.Array:
        # The frequencies of LRPE, for one, stay float32 in every dtype, and a norm adds its bias in float32.
        # int8 is what `quantize` made.
        *modules, name = (key.key for key in path)
        of_norm = bool(modules) and modules[-1].endswith("_norm")
        rounded = name in ("kernel", "bias", "embedding", "head") and not of_norm and leaf.dtype != jnp.int8
        return jnp.asarray(leaf, dtype if rounded else None)

    return jax.tree_util.tree_map_with_path(cast, params)
