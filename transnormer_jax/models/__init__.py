"""Models: TransNormerLLM."""

from transnormer_jax.models.cache import Cache
from transnormer_jax.models.config import TransNormerLLMConfig
from transnormer_jax.models.transnormer_llm import TransNormerLLM

__all__ = ["Cache", "TransNormerLLM", "TransNormerLLMConfig"]
