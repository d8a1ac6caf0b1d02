"""How every array of a run is sharded: parameters by the names of their dimensions, optimizer states like them."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from transnormer_jax.distributed.rules import RULES, that_divide
from transnormer_jax.errors import UserError

# (path of keys, shape) -> the name of every dimension.
DimensionNames = Callable[[tuple[str, ...], tuple[int, ...]], tuple[str | None, ...]]


def batch_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the layout of an array of a batch: rows over `data` and `fsdp`, tokens over `context`, where they divide.

    Args:
      shape: of the whole array, [B, ...] or [B, N, ...].
    """
    names = ("batch", "sequence", *[None] * len(shape))[: len(shape)]
    return NamedSharding(mesh, RULES.spec(names, shape, dict(mesh.shape)))


def parameter_shardings(params: Any, mesh: Mesh, names: DimensionNames) -> Any:
    """The sharding of every parameter: by `RULES`, and whatever of `fsdp` and `context` that leaves, by size.

    An axis of `RULES.embed` that no named dimension of a parameter takes goes to the largest dimension that it divides.
    So a parameter is only ever whole over them where nothing in it divides.

    Args:
      params: a tree of arrays, or of their shapes.
      names: (path of keys, shape) -> the name of every dimension, a field of `ShardingRules` or None.

    Returns:
      The tree of `params`, of shardings.
    """

    def sharding(path: Any, x: jax.ShapeDtypeStruct) -> NamedSharding:
        sizes = dict(mesh.shape)
        spec = RULES.spec(names(_keys(path), x.shape), x.shape, sizes)
        return NamedSharding(mesh, _spread(spec, x.shape, sizes))

    return jax.tree_util.tree_map_with_path(sharding, params)


def optimizer_shardings(opt_state: Any, params: Any, shardings: Any, mesh: Mesh) -> Any:
    """The sharding of every array of an optimizer's state: that of the parameter whose path ends its own.

    A factored moment (Adafactor) has one dimension less than its parameter, and is sharded like the rest. What is of no
    parameter (counters, Muon's coefficients) is copied, and so are Adafactor's placeholders of one element.

    Args:
      opt_state: a tree of arrays, or of their shapes.

    Returns:
      The tree of `opt_state`, of shardings.

    Raises:
      UserError: an array belongs to no parameter, or its shape is not made from the parameter's.
    """
    known = {
        _keys(path): (x.shape, sharding.spec)
        for (path, x), sharding in zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    }

    def sharding(path: Any, x: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = _keys(path)
        if x.size == 1 or not keys:
            return NamedSharding(mesh, PartitionSpec())
        shape, spec = known.get(keys, ((), PartitionSpec()))
        spec = _spec_like(x.shape, shape, spec)
        if spec is None:
            raise UserError(f"the optimizer's {jax.tree_util.keystr(path)} {x.shape} is like no parameter.")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(sharding, opt_state)


class Placement(NamedTuple):
    """A line of the table of parameters."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    spec: PartitionSpec
    bytes_per_device: int


def placements(params: Any) -> Iterator[Placement]:
    """How each parameter is sharded; `params` are arrays or shapes, with shardings."""
    for path, x in jax.tree_util.tree_leaves_with_path(params):
        local = math.prod(x.sharding.shard_shape(x.shape))
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        yield Placement(name, str(x.dtype), x.shape, x.sharding.spec, local * x.dtype.itemsize)


def placement_table(params: Any) -> str:
    """One line for each parameter: name, type and shape, what its dimensions are divided over, bytes per device."""
    rows = [
        (
            place.name,
            f"{place.dtype}{list(place.shape)}",
            " x ".join(
                "-" if axes is None else "+".join((axes,) if isinstance(axes, str) else axes)
                for axes in [*place.spec, *[None] * (len(place.shape) - len(place.spec))]
            ),
            f"{place.bytes_per_device:,} B",
        )
        for place in placements(params)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        f"  {row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  {row[3]:>{widths[3]}}" for row in rows
    )


def _keys(path: Any) -> tuple[str, ...]:
    """The dictionary keys that end a path: in an optimizer's state, the path of the parameter."""
    keys: tuple[str, ...] = ()
    for entry in reversed(path):
        if not isinstance(entry, jax.tree_util.DictKey):
            break
        keys = (str(entry.key), *keys)
    return keys


def _spread(spec: PartitionSpec, shape: tuple[int, ...], sizes: dict[str, int]) -> PartitionSpec:
    entries = [() if axes is None else (axes,) if isinstance(axes, str) else tuple(axes) for axes in spec]
    for axis in RULES.embed:
        if sizes.get(axis, 1) == 1 or any(axis in axes for axes in entries):
            continue
        for dimension in np.argsort([-size for size in shape], kind="stable"):
            wanted = (*entries[dimension], axis)
            if that_divide(shape[dimension], wanted, sizes) == wanted:
                entries[dimension] = wanted
                break
    return PartitionSpec(*[axes[0] if len(axes) == 1 else axes or None for axes in entries])


def _spec_like(shape: tuple[int, ...], of: tuple[int, ...], spec: PartitionSpec) -> PartitionSpec | None:
    entries = [*spec, *[None] * (len(of) - len(spec))]
    if shape == of:
        return PartitionSpec(*entries)
    for left_out in range(len(of)):
        if shape == (*of[:left_out], *of[left_out + 1 :]):
            return PartitionSpec(*entries[:left_out], *entries[left_out + 1 :])
    return None
