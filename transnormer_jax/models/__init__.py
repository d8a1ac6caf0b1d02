"""Models, assembled from layers, with their configurations."""

from transnormer_jax.models.architectures import ARCHITECTURES
from transnormer_jax.models.cache import Cache
from transnormer_jax.models.mixers import MIXERS
from transnormer_jax.models.transnormer import TransNormer
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm import TransNormerLLM, unstack_layers
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig

__all__ = [
    "ARCHITECTURES",
    "MIXERS",
    "Cache",
    "TransNormer",
    "TransNormerConfig",
    "TransNormerLLM",
    "TransNormerLLMConfig",
    "unstack_layers",
]
