"""`jax.vmap` of kernels: what is mapped over becomes more rows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def fold_vmap(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel that can be mapped over any of its operands, all of which begin with rows, but a constant log decay.

    Args:
      kernel: takes q, k, v, log_decay and more, each a tree of arrays.
    """

    @jax.custom_batching.custom_vmap
    def call(*operands: Any) -> Any:
        return kernel(*operands)

    @call.def_vmap
    def _(size: int, mapped: Any, *operands: Any) -> tuple[Any, Any]:
        leaves, tree = jax.tree.flatten(operands)
        is_mapped = jax.tree.leaves(mapped)
        constant = operands[3].ndim - mapped[3] == 1
        if constant and mapped[3]:  # each call has another decay
            leaves = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(leaves, is_mapped, strict=True)]
            out = jax.lax.map(lambda x: call(*jax.tree.unflatten(tree, x)), leaves)
        else:
            rows = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(leaves, is_mapped, strict=True)]
            rows = [x.reshape(-1, *x.shape[2:]) for x in rows]
            folded = list(jax.tree.unflatten(tree, rows))
            if constant:
                folded[3] = operands[3]
            out = jax.tree.map(lambda x: x.reshape(size, -1, *x.shape[1:]), call(*folded))
        return out, jax.tree.map(lambda _: True, out)

    return call
