"""Meshes of devices, and how arrays are laid out on them."""

from transnormer_jax.distributed.layout import (
    batch_sharding,
    optimizer_shardings,
    parameter_shardings,
    placement_table,
    placements,
)
from transnormer_jax.distributed.mesh import MeshConfig, make_mesh
from transnormer_jax.distributed.rules import RULES, ShardingRules, auto_axes, constrain, that_divide

__all__ = [
    "RULES",
    "MeshConfig",
    "ShardingRules",
    "auto_axes",
    "batch_sharding",
    "constrain",
    "make_mesh",
    "optimizer_shardings",
    "parameter_shardings",
    "placement_table",
    "placements",
    "that_divide",
]
