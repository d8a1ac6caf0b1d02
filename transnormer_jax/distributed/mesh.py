"""The mesh of devices: copies, parts of parameters, parts of rows, and parts of layers.

`data` copies the parameters and splits the batch. `fsdp` splits both. `context` splits the tokens of each row, and the
parameters too. `tensor` splits heads and channels; it talks most, so its devices are neighbours.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from transnormer_jax.distributed.rules import AXES
from transnormer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; at most one of them may be -1, which means all that remain.

    Attributes:
      data: copies of the parameters; the batch is split among them.
      fsdp: number of parts into which parameters and batch are split.
      context: number of parts into which the tokens of each row, and the parameters, are split.
      tensor: number of parts into which heads and channels are split.
    """

    data: int = 1
    fsdp: int = -1
    context: int = 1
    tensor: int = 1

    def sizes(self, num_devices: int) -> dict[str, int]:
        """Axis -> devices, in the order of `AXES`.

        >>> MeshConfig(data=1, fsdp=-1, tensor=2).sizes(8)
        {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 2}

        Raises:
          UserError: the sizes do not multiply to the number of devices.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        known = math.prod(size for size in sizes.values() if size != -1)
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) == 1 and known > 0 and num_devices % known == 0:
            sizes[free[0]] = num_devices // known
        if math.prod(sizes.values()) != num_devices or min(sizes.values()) < 1:
            raise UserError(
                f"mesh {dataclasses.asdict(self)} does not fit {num_devices} devices: "
                "let the sizes multiply to that number, one of them may be -1, as config.mesh.fsdp is by default."
            )
        return sizes


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Arranges devices as `config` says, along the wires of a TPU slice where there are such.

    Several slices are connected by a slow network: they are laid along `data`, and what is left of them along `fsdp`.

    Args:
      config: sizes of the axes.
      devices: all of this run where None; else those of a topology that is compiled for.

    Returns:
      A mesh with all of `AXES`, over each of which XLA may divide operations.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or the slices divide neither `data` nor `fsdp`.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = tuple(sizes.values())
    if num_slices == 1:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        across = _across_slices(sizes, num_slices)
        within = tuple(size // across.get(axis, 1) for axis, size in sizes.items())
        outer = tuple(across.get(axis, 1) for axis in sizes)
        array = mesh_utils.create_hybrid_device_mesh(within, outer, devices, allow_split_physical_axes=True)
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _across_slices(sizes: dict[str, int], num_slices: int) -> dict[str, int]:
    along_data = math.gcd(sizes["data"], num_slices)
    along_fsdp = num_slices // along_data
    if sizes["fsdp"] % along_fsdp:
        raise UserError(
            f"mesh {sizes} does not fit {num_slices} slices: make config.mesh.data a multiple of {num_slices}."
        )
    return {"data": along_data, "fsdp": along_fsdp}
