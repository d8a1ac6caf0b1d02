"""Sharding rules: which mesh axes shard which dimensions of parameters, batches, activations and kernels."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
from jax.sharding import AxisType, PartitionSpec

from transnormer_jax.errors import UserError, did_you_mean

AXES = ("data", "fsdp", "context", "tensor")

Axes = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ShardingRules:
    """Names of dimensions -> the mesh axes that divide them, in order, as far as they divide the size.

    Raises UserError where an axis is none of `AXES`.

    Attributes:
      batch: rows.
      sequence: tokens of a row.
      vocab: rows of an embedding.
      embed: D, of parameters. Axes that split the batch or the sequence may split parameters too (ZeRO-3): they are
        gathered layer by layer.
      heads: H, or H * K.
      mlp: F.
      layers: stacked layers.
    """

    batch: Axes = ("data", "fsdp")
    sequence: Axes = ("context",)
    vocab: Axes = ("tensor",)
    embed: Axes = ("fsdp", "context")
    heads: Axes = ("tensor",)
    mlp: Axes = ("tensor",)
    layers: Axes = ()

    def __post_init__(self) -> None:
        for name, axes in dataclasses.asdict(self).items():
            for axis in axes:
                if axis not in AXES:
                    raise UserError(f"rule {name}={axes}: unknown mesh axis {axis!r}: {did_you_mean(axis, AXES)}")

    def spec(self, names: Sequence[str | None], shape: Sequence[int], mesh_sizes: Mapping[str, int]) -> PartitionSpec:
        """How an array with dimensions of these names is sharded over a mesh; a dimension named None is not divided.

        >>> tuple(RULES.spec(("layers", "embed", "heads"), (24, 1024, 1024), {"fsdp": 4, "tensor": 2}))
        (None, 'fsdp', 'tensor')

        Args:
          names: of all dimensions, fields of this class or None.
          mesh_sizes: axis -> devices.

        Returns:
          For each dimension None, an axis or several.

        Raises:
          UserError: a name is unknown, there are not as many as dimensions, or two would divide over the same axis.
        """
        if len(names) != len(shape):
            raise UserError(f"{len(names)} names {tuple(names)} for the shape {tuple(shape)}: name every dimension.")
        taken: dict[str, str] = {}
        entries = []
        for name, size in zip(names, shape, strict=True):
            axes = () if name is None else self._axes(name)
            for axis in axes:
                if axis in taken:
                    raise UserError(
                        f"dimensions {taken[axis]!r} and {name!r} of one array both divide over mesh axis {axis!r}: "
                        "change one of the two rules."
                    )
                taken[axis] = str(name)
            real = {axis: count for axis, count in mesh_sizes.items() if count > 1}
            entries.append(that_divide(size, axes, real))
        return PartitionSpec(*[entry[0] if len(entry) == 1 else entry or None for entry in entries])

    def _axes(self, name: str) -> Axes:
        known = [field.name for field in dataclasses.fields(self)]
        if name not in known:
            raise UserError(f"unknown dimension {name!r}: {did_you_mean(name, known)}")
        return getattr(self, name)


RULES = ShardingRules()
"""The rules by which all arrays of the package are laid out."""


def that_divide(size: int, axes: Sequence[str], mesh_sizes: Mapping[str, int]) -> Axes:
    """Those of `axes` that the mesh has (`mesh_sizes`), taken in order, over which `size` divides evenly."""
    taken: Axes = ()
    for axis in axes:
        if axis in mesh_sizes and size % math.prod(mesh_sizes[one] for one in (*taken, axis)) == 0:
            taken += (axis,)
    return taken


def auto_axes() -> dict[str, int]:
    """Axes, and their sizes, of the mesh that is set, over which XLA may divide operations.

    Raises:
      UserError: an axis of several devices is Explicit, which is the default of `jax.make_mesh`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = list(zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True))
    for name, size, kind in axes:
        if kind == AxisType.Explicit and size > 1:
            raise UserError(
                f"mesh axis {name!r} is Explicit: make the mesh with axis_types=(AxisType.Auto,) * {len(axes)}, "
                "or call under jax.sharding.auto_axes."
            )
    return {name: size for name, size, kind in axes if kind == AxisType.Auto}


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Lays an activation out by `RULES` on the mesh that is set; without one of several devices, `x` itself.

    Args:
      *names: of its dimensions, fields of `ShardingRules` or None.

    Returns:
      The same numbers, [...] in the dtype of `x`.

    Raises:
      UserError: as `ShardingRules.spec`.
    """
    sizes = auto_axes()
    spec = RULES.spec(names, x.shape, sizes)
    if math.prod(sizes.values()) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, spec)
