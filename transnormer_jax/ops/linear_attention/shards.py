"""The operator on a mesh: each device computes its own rows and heads, on its own shard of every row.

XLA divides its own operations among devices, but not a kernel, and it has no parallel form for a recurrence. So where a
mesh is set, the operator runs under `jax.shard_map`. Rows and heads need no communication; `context.py` says what
shards of a row exchange.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from transnormer_jax.distributed.rules import AXES, RULES, that_divide
from transnormer_jax.errors import UserError

Axes = str | tuple[str, ...]
"""One or several axes of a mesh."""


class Sharding(NamedTuple):
    """The mesh axes that divide rows, the tokens of a row, and heads; None where each device holds all of them."""

    rows: Axes | None
    tokens: Axes | None
    heads: Axes | None

    def of(self, dimensions: str) -> P:
        """The spec of an array with these dimensions: b rows, n tokens, h heads, anything else whole."""
        axes = {"b": self.rows, "n": self.tokens, "h": self.heads}
        return P(*[axes.get(name) for name in dimensions])


def find_sharding(x: jax.Array, num_heads: int | None = None, *others: jax.Array) -> Sharding | None:
    """How the rows, tokens and heads of `x` [B, N] or [B, N, H, K] are divided; None on one device.

    Over Explicit axes of any name, as the type of `x` says; over Auto axes by `distributed.RULES`, as far as the sizes
    divide. Axes of one device are named as well: over an axis that a spec leaves out, a gradient is summed.

    Args:
      num_heads: H of the array with the fewest heads, or None.
      *others: arrays [B, N, ...] that must be divided as `x` is.

    Raises:
      UserError: `x` is divided by its features, the others are divided otherwise, or an Auto axis has a name that no
        rule knows. Dividing the work would then silently gather arrays.
    """
    sizes = _axes()
    if math.prod(sizes.values()) == 1:
        return None
    mesh = jax.sharding.get_abstract_mesh()
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if any(types[name] == AxisType.Explicit for name, size in sizes.items() if size > 1):
        spec = [*jax.typeof(x).sharding.spec, *[None] * x.ndim][: x.ndim]
        if any(spec[3:]):
            raise UserError(f"q is sharded as {P(*spec)}: its features must be whole; use jax.sharding.reshard.")
        sharding = Sharding(spec[0], spec[1], spec[2] if x.ndim > 2 else None)
        if any(find_sharding(other) != sharding for other in others):
            raise UserError("q, k, v and a decay per token are sharded differently: reshard them alike.")
        return sharding
    for name, size in sizes.items():
        if size > 1 and name not in AXES:
            raise UserError(
                f"mesh axis {name!r} is none of {', '.join(AXES)}, by which linear attention divides its work: rename "
                "it, give it axis_types=AxisType.Explicit, or call linear_attention under jax.shard_map."
            )
    tokens = [axis for axis in that_divide(x.shape[1], RULES.sequence, sizes) if sizes[axis] > 1]
    heads = that_divide(num_heads, RULES.heads, sizes) if num_heads else ()
    return Sharding(that_divide(x.shape[0], RULES.batch, sizes) or None, tokens[0] if tokens else None, heads or None)


def per_device(function: Callable[..., Any], in_specs: tuple[Any, ...], out_specs: Any) -> Callable[..., Any]:
    """`function` on each device's shards; arguments, and specs, may be trees, and None."""

    def call(*arguments: Any) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if AxisType.Explicit in mesh.axis_types:
            arguments = jax.tree.map(jax.sharding.reshard, arguments, in_specs)
        mapped = jax.shard_map(
            function, in_specs=in_specs, out_specs=out_specs, axis_names=set(_axes()), check_vma=False
        )
        # Outside of jit, shard_map cannot see which operands are differentiated.
        return jax.jit(mapped)(*arguments)

    return call


def _axes() -> dict[str, int]:
    """Axes and sizes of the mesh that is set, without those over which the caller has mapped already."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in axes if kind != AxisType.Manual}
