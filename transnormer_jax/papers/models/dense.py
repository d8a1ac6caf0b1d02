"""The dense layers around a stack of blocks."""

import flax.linen as nn
import jax.numpy as jnp

from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.papers.models.bilstm import BiLSTMConfig


def dense(config: TransNormerConfig | BiLSTMConfig, features: int, name: str) -> nn.Dense:
    """A layer to `features`, in the dtypes of the model."""
    return nn.Dense(features, dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype), name=name)
