"""The projections around an attention: tokens to heads, and heads to tokens. For use inside a compact method."""

import math
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_XAVIER = nn.initializers.xavier_uniform()


def project_heads(
    names: Iterable[str],
    x: Float[Array, "B N D"],
    num_heads: int,
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    kernel_init: nn.initializers.Initializer = _XAVIER,
    head_dim: int | None = None,
) -> tuple[Float[Array, "B N H K"], ...]:
    """Projects tokens once for each name, with a bias, and splits the features into H heads of K, by default D / H."""
    head_dim = head_dim or x.shape[-1] // num_heads
    with jax.named_scope("heads"):
        dense = (
            nn.Dense(num_heads * head_dim, dtype=dtype, param_dtype=param_dtype, kernel_init=kernel_init, name=name)
            for name in names
        )
        return tuple(project(x).reshape(*x.shape[:2], num_heads, head_dim) for project in dense)


def project_out(
    out: Float[Array, "B N H K"] | Float[Array, "B N H*K"],
    dtype: jnp.dtype,
    param_dtype: jnp.dtype,
    features: int | None = None,
) -> Float[Array, "B N D"]:
    """Projects the heads, side by side, to D features with a bias; by default D = H K."""
    out = out.reshape(*out.shape[:2], math.prod(out.shape[2:]))
    return nn.Dense(features or out.shape[-1], dtype=dtype, param_dtype=param_dtype, kernel_init=_XAVIER, name="out")(
        out
    )
