"""TPU topologies without TPUs: the devices to compile for, and the properties of their chips."""

import dataclasses
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from transnormer_jax.errors import UserError, did_you_mean

# What libtpu wants to find in the environment before it is loaded on a machine without TPUs.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",  # what is read from a cache tells nothing of the compiler
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server to ask for the kind of the machine
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the compiler and the maker say of one device. A device is a chip, or on a TPU7x one of its two cores.

    Attributes:
      hbm_bytes: that a program may use, as libtpu 0.0.52 says when a program needs more.
      hbm_bandwidth: bytes/s, published.
      ring_bandwidth: bytes/s that a device sends in a ring along one dimension of the torus, in both directions
        together; published speed of two links.
      clock_hertz: of the cycles that the compiler counts; from the published peak and the size of the matrix units.
      options: further arguments of the topology.
    """

    hbm_bytes: int
    hbm_bandwidth: float
    ring_bandwidth: float
    clock_hertz: float
    options: dict[str, str] = dataclasses.field(default_factory=dict)


# By the name in a topology. https://cloud.google.com/tpu/docs/system-architecture-tpu-vm
CHIPS = {
    # Both cores of a v4 work as one device, as they do on a Cloud TPU; libtpu's own default is one device each.
    "v4": Chip(int(30.75 * _GIB), 1.23e12, 0.9e11, 1.05e9, {"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * _GIB), 0.82e12, 0.9e11, 1.5e9),
    "v5p": Chip(int(95.73 * _GIB), 2.76e12, 1.8e11, 1.75e9),
    "v6e": Chip(int(31.24 * _GIB), 1.64e12, 1.8e11, 1.75e9),
    "tpu7x": Chip(int(94.74 * _GIB), 3.69e12, 0.9e11, 2.2e9),
}
_EXAMPLES = "v4:2x2x1, v5e:2x2, v5e:4x4, v5p:4x4x4, v6e:16x16 or tpu7x:4x4x4"


@dataclasses.dataclass(frozen=True)
class Topology:
    """One slice.

    Attributes:
      name: such as "v5p:8x8x8".
      devices: as jax would number them, for `make_mesh`.
      num_chips: chips, of one or two devices each.
      chip: what each device has.
    """

    name: str
    devices: tuple[Any, ...]
    num_chips: int
    chip: Chip

    @property
    def device_kind(self) -> str:
        """The name that jax gives the device, such as "TPU v5 lite"."""
        return self.devices[0].device_kind

    @property
    def devices_per_chip(self) -> int:
        """2 on a TPU7x, else 1."""
        return len(self.devices) // self.num_chips


def load_topology(name: str) -> Topology:
    """The devices of a slice, from libtpu. This process computes on the CPU from here on.

    Args:
      name: generation and chips along each dimension, such as "v5e:4x4" or "v5p:8x8x8".

    Raises:
      UserError: there is no libtpu, or it knows no such slice.
    """
    generation, _, sizes = name.partition(":")
    if generation not in CHIPS:
        raise UserError(f"unknown TPU {generation!r} in topology {name!r}: {did_you_mean(generation, CHIPS)}")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", sizes):
        raise UserError(f"topology {name!r} has no sizes such as 4x4 or 4x4x4: use, for example, {_EXAMPLES}.")
    os.environ.update(ENVIRONMENT | {"TPU_LIBRARY_PATH": str(find_libtpu())})
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    chip = CHIPS[generation]
    try:
        devices: Any = topologies.get_topology_desc(name, platform="tpu", **chip.options).devices
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"no topology {name!r} ({reason}): use, for example, {_EXAMPLES}.") from error
    num_chips = len({tuple(device.coords) for device in devices})
    return Topology(name, tuple(devices), num_chips, chip)


def find_libtpu() -> Path:
    """The TPU compiler: the file in TPU_LIBRARY_PATH, else package libtpu, or <sys.prefix>/libtpu/libtpu/libtpu.so.

    TPU_LIBRARY_PATH may also be the directory that holds libtpu.so.

    Raises:
      UserError: there is none.
    """
    places = [Path(sys.prefix, "libtpu", "libtpu", "libtpu.so")]
    package = importlib.util.find_spec("libtpu")
    if package is not None and package.origin is not None:
        places.insert(0, Path(package.origin).with_name("libtpu.so"))
    if named := os.environ.get("TPU_LIBRARY_PATH"):
        places = [Path(named, "libtpu.so") if Path(named).is_dir() else Path(named)]
    for place in places:
        if place.is_file():
            return place
    raise UserError(
        f"there is no TPU compiler at {' or '.join(map(str, places))}: run "
        f"`pip install --no-deps --target={Path(sys.prefix, 'libtpu')} libtpu`, or name the file in TPU_LIBRARY_PATH."
    )
