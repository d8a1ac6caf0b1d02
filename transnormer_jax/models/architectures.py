"""Architectures by name, each with the dataclass of its configuration, `config.model`."""

from typing import Any

from transnormer_jax.models.transnormer_config import TransNormerConfig
from transnormer_jax.models.transnormer_llm_config import TransNormerLLMConfig
from transnormer_jax.registry import Registry

ARCHITECTURES = Registry[type[Any]]("architecture")
"""The dataclasses of `config.model`, by the names that `config.architecture` may have."""

ARCHITECTURES["transnormer_llm"] = TransNormerLLMConfig
ARCHITECTURES["transnormer"] = TransNormerConfig
