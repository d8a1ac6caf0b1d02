"""Models, assembled from layers, with their configurations."""

from transnormer_jax.models.architectures import ARCHITECTURES
from transnormer_jax.models.language_model import Cache, LanguageModel, unstack_layers
from transnormer_jax.models.mixers import MIXERS
from transnormer_jax.models.model_config import ModelConfig
from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig

TransNormer = TransNormerLLM = LanguageModel
"""The one model under its papers' names; the configuration says which it is."""

__all__ = [
    "ARCHITECTURES",
    "MIXERS",
    "Cache",
    "LanguageModel",
    "ModelConfig",
    "TransNormer",
    "TransNormerConfig",
    "TransNormerLLM",
    "TransNormerLLMConfig",
    "unstack_layers",
]
