"""`apply` of a model, compiled once for each model and shape, in place of operation by operation."""

import functools
from typing import Any

import flax.linen as nn
import jax


@functools.cache
def apply_of(model: nn.Module) -> Any:
    """`model.apply`, jitted; equal models share it."""
    return jax.jit(model.apply, static_argnames=("method", "mutable"))
