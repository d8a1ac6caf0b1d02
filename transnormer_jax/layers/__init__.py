"""Flax Linen modules: an op plus its parameters, nothing more."""

from transnormer_jax.layers.gated_linear_attention import GatedLinearAttention
from transnormer_jax.layers.simple_glu import SimpleGLU

__all__ = ["GatedLinearAttention", "SimpleGLU"]
