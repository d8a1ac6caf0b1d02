"""The precision of sums: at least float32, whatever the operands."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def wide_type(x: Array) -> jnp.dtype:
    """The type in which numbers like those of `x` [...] are summed: float32, or float64 for float64."""
    return jnp.promote_types(x.dtype, jnp.float32)


def dot(equation: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """An einsum of `a` [...] and `b` [...] in float32; float32 operands are not rounded to bfloat16 or TF32."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=jnp.float32)
