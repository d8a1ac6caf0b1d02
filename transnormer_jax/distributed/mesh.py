"""The device mesh: axes data, fsdp, context and tensor.

`data` copies the parameters and splits the batch. `fsdp` splits both. `context` splits the tokens of each row, and the
parameters too. `tensor` splits heads and channels; it talks most, so its devices are neighbours.
"""

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
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

    TPU slices, and machines with GPUs, are connected by a slow network: they are laid out along `data`, then along
    `fsdp`, then along `context`. `tensor` spans GPU machines only if it is too large for one.

    Args:
      devices: all of this run where None; else those of a topology that is compiled for.

    Returns:
      A mesh with all of `AXES`, over each of which XLA may divide operations.

    Raises:
      UserError: the sizes do not multiply to the number of devices, slices can only be laid out along `tensor`, or
        machines have different numbers of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = config.sizes(len(devices))
    counts = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    shape = tuple(sizes.values())
    if len(counts) == 1:
        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        across = _across(sizes, counts, "slices" if devices[0].platform == "tpu" else "nodes")
        within = tuple(size // across[axis] for axis, size in sizes.items())
        array = mesh_utils.create_hybrid_device_mesh(
            within, tuple(across.values()), devices, allow_split_physical_axes=True
        )
    return Mesh(array, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _across(sizes: dict[str, int], counts: Mapping[int, int], kind: str) -> dict[str, int]:
    """How many slices or nodes there are along each axis."""
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the {kind} have {', '.join(map(str, counts.values()))} devices: start the run on {kind} that are alike."
        )
    across, left = {}, len(counts)
    for axis, size in sizes.items():  # the outermost first
        across[axis] = math.gcd(size, left)
        left //= across[axis]
    if kind == "slices" and across["tensor"] > 1:
        raise UserError(
            f"mesh {sizes} does not fit {len(counts)} slices: make config.mesh.data a multiple of {len(counts)}, since "
            "tensor cannot span slices."
        )
    return across
