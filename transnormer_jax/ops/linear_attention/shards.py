"""Kernels on a mesh: each device runs them on its own rows and heads.

XLA divides its own operations among devices, but not a kernel. Where a mesh is set, kernels run under `jax.shard_map`:
rows are divided over the axes named data and fsdp, heads over the axis named tensor, as far as their numbers divide.
Over any other axis every device does the same work. No communication is needed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

_ROW_AXES = ("data", "fsdp")
_HEAD_AXES = ("tensor",)


class Specs(NamedTuple):
    """How the arrays of a kernel lie on the mesh.

    Attributes:
      tokens: [B, N, H, K].
      heads: [H].
      state: [B, H, K, V].
      places: [B, N].
      saved: [B, blocks, K, H * V].
    """

    tokens: P
    heads: P
    state: P
    places: P
    saved: P


def specs(batch: int, num_heads: int) -> Specs:
    """The specs of B rows and H heads on the mesh at hand."""
    axes = _free_axes()
    rows, heads = _that_divide(batch, _ROW_AXES, axes), _that_divide(num_heads, _HEAD_AXES, axes)
    return Specs(P(rows, None, heads), P(heads), P(rows, heads), P(rows), P(rows, None, None, heads))


def per_device(function: Callable[..., Any], in_specs: Sequence[P], out_specs: Any) -> Callable[..., Any]:
    """The function on each device's shards; the function itself where no mesh of several devices is set."""
    axes = _free_axes()
    if math.prod(axes.values()) == 1:
        return function
    return jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, axis_names=set(axes), check_vma=False)


def _free_axes() -> dict[str, int]:
    """The axes, and their sizes, that XLA would divide its own operations over."""
    mesh = jax.sharding.get_abstract_mesh()
    sizes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in sizes if kind == AxisType.Auto}


def _that_divide(number: int, names: Sequence[str], axes: dict[str, int]) -> tuple[str, ...] | None:
    taken = list[str]()
    for name in names:
        if name in axes and number % math.prod(axes[axis] for axis in [*taken, name]) == 0:
            taken.append(name)
    return tuple(taken) or None
