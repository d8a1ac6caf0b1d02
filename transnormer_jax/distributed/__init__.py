"""Meshes of devices, and how arrays are laid out on them."""

from transnormer_jax.distributed.mesh import MeshConfig, batch_sharding, make_mesh, state_shardings

__all__ = ["MeshConfig", "batch_sharding", "make_mesh", "state_shardings"]
