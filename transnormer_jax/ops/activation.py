"""Activations by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from transnormer_jax.errors import UserError, did_you_mean

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "identity": lambda x: x,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "elu": jax.nn.elu,
    "1+elu": lambda x: 1 + jax.nn.elu(x),
    "2+elu": lambda x: 2 + jax.nn.elu(x),
    "leaky_relu": jax.nn.leaky_relu,
    "sigmoid": jax.nn.sigmoid,
    "sin": jnp.sin,
}


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the elementwise function of that name; the shape and dtype of its argument are kept.

    Raises:
      UserError: the name is unknown.
    """
    if name not in _ACTIVATIONS:
        raise UserError(f"unknown activation {name!r}: {did_you_mean(name, _ACTIVATIONS)}")
    return _ACTIVATIONS[name]
