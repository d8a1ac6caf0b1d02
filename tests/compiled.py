"""Models for tests: parameters that compile nothing, and `apply` compiled once for each model and shape."""

import contextlib
import functools
import zlib
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def apply_of(model: nn.Module) -> Any:
    """`model.apply`, jitted; equal models share it."""
    return jax.jit(model.apply, static_argnames=("method", "mutable"))


@functools.cache
def random_params(model: nn.Module, std: float = 0.2) -> Any:
    """Parameters as after training: no bias is zero, no scale one, and padding has an embedding.

    Those of one name and shape are the same in every model. They are on the first device.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    def draw(path: Any, x: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path)
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(x.shape, np.float32)
        if "directions" not in name and "householder" not in name:
            values = std * values + ("scale" in name)
        return jax.device_put(jnp.asarray(values, x.dtype), jax.devices()[0])

    return jax.tree_util.tree_map_with_path(draw, shapes)


@contextlib.contextmanager
def compiled_programs() -> Iterator[list[str]]:
    """A list of the names of the programs that are compiled inside."""
    names: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event.endswith("backend_compile_duration"):
            names.append(details.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
