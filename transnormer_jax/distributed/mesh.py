"""The mesh: axis `data` copies the parameters, axis `fsdp` splits them; a batch is split over both."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from transnormer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1, at most once, takes those that are left."""

    data: int = -1
    fsdp: int = 1


def make_mesh(config: MeshConfig) -> Mesh:
    """Arranges all devices as `config` says.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    sizes = dataclasses.asdict(config)
    num_devices = jax.device_count()
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    free = [name for name, size in sizes.items() if size == -1]
    if len(free) == 1 and known > 0 and num_devices % known == 0:
        sizes[free[0]] = num_devices // known
    if np.prod(list(sizes.values())) != num_devices or min(sizes.values()) < 1:
        raise UserError(
            f"mesh {dataclasses.asdict(config)} does not fit {num_devices} devices: "
            "let the sizes multiply to that number, one of them may be -1."
        )
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_shardings(tree: Any, mesh: Mesh) -> Any:
    """Splits each array over `fsdp` along its largest axis that divides evenly; one without such an axis is copied.

    The rule reads shapes alone, so it serves parameters and every optimizer's state.
    """
    size = mesh.shape["fsdp"]

    def sharding(x: jax.ShapeDtypeStruct) -> NamedSharding:
        axes = sorted((axis for axis in range(x.ndim) if x.shape[axis] % size == 0), key=lambda axis: x.shape[axis])
        if size == 1 or not axes:
            return NamedSharding(mesh, PartitionSpec())
        return NamedSharding(mesh, PartitionSpec(*[None] * axes[-1], "fsdp"))

    return jax.tree.map(sharding, tree)
