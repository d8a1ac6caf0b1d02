"""Inference: sampling, generation, and batches that requests join and leave."""

from transnormer_jax.inference.continuous_batch import ContinuousBatch, Progress, Request, TokenLogProbs
from transnormer_jax.inference.generator import Beam, Generator, LogProbabilities
from transnormer_jax.inference.prompt_state import PromptState
from transnormer_jax.inference.quantization import quantize
from transnormer_jax.inference.sampling import SamplingSettings

__all__ = [
    "Beam",
    "ContinuousBatch",
    "Generator",
    "LogProbabilities",
    "Progress",
    "PromptState",
    "Request",
    "SamplingSettings",
    "TokenLogProbs",
    "quantize",
]
