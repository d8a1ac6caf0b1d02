"""Chooses a mesh for the devices of a command, which may differ from those of the training run."""

import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config
from transnormer_jax.training.placement import check_model_on_mesh


def available_mesh(config: Config, wanted: MeshConfig | None = None, devices: Sequence[Any] | None = None) -> Mesh:
    """The run's own mesh if it fits the devices; otherwise one that holds as little of the model on each as it can.

    Without the run's mesh, parameters are split over as many devices as divide the model's width, and what is left
    holds copies: on 6 devices, a model of width 1,024 has 2 shards and 3 copies.

    Args:
      wanted: a mesh to use as it is, fitting or not.
      devices: to lay out; None is all of this run.

    Raises:
      UserError: `wanted` does not fit the devices or the model.
    """
    devices = jax.devices() if devices is None else devices
    if wanted is not None:
        return _checked(config, wanted, devices)
    try:
        return _checked(config, config.mesh, devices)
    except UserError:
        return _checked(config, MeshConfig(data=-1, fsdp=math.gcd(len(devices), config.model.model_dim)), devices)


def rounded_up(rows: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `rows`.

    >>> rounded_up(16, 3)
    18
    """
    return -(-rows // multiple) * multiple


def _checked(config: Config, mesh: MeshConfig, devices: Sequence[Any]) -> Mesh:
    made = make_mesh(mesh, devices)
    check_model_on_mesh(config, made)
    return made
