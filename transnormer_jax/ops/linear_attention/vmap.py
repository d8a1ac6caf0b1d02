"""`jax.vmap` of kernels: what is mapped over becomes more rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def fold_vmap(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that can be mapped over any of its operands, all of which begin with rows, but a constant log decay.

    Args:
      kernel: takes `Operands` and more trees of arrays.
    """

    @jax.custom_batching.custom_vmap
    def call(*arguments: Any) -> Any:
        return kernel(*arguments)

    @call.def_vmap
    def _(size: int, mapped: list[Any], *arguments: Any) -> tuple[Any, Any]:
        log_decay = arguments[0].log_decay
        constant = log_decay.ndim - mapped[0].log_decay == 1
        arguments = jax.tree.map(lambda x, m: x if m else jnp.broadcast_to(x, (size, *x.shape)), [*arguments], mapped)
        if constant and mapped[0].log_decay:  # each call has another decay
            out = jax.lax.map(lambda x: call(*x), arguments)
        else:
            operands, *others = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), arguments)
            if constant:
                operands = operands._replace(log_decay=log_decay)
            out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), call(operands, *others))
        return out, jax.tree.map(lambda _: True, out)

    return call
