"""Inference: sampling and generation."""

from transnormer_jax.inference.generator import Generator
from transnormer_jax.inference.sampling import SamplingSettings

__all__ = ["Generator", "SamplingSettings"]
