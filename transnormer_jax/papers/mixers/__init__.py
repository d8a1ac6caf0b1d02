"""The token mixers of the papers' baselines."""

from transnormer_jax.papers.mixers.cosformer import CosformerAttention
from transnormer_jax.papers.mixers.linear_transformer import LinearTransformerAttention
from transnormer_jax.papers.mixers.linformer import LengthProjection, LinformerAttention
from transnormer_jax.papers.mixers.lsh import LSHAttention
from transnormer_jax.papers.mixers.performer import PerformerAttention

__all__ = [
    "CosformerAttention",
    "LSHAttention",
    "LengthProjection",
    "LinearTransformerAttention",
    "LinformerAttention",
    "PerformerAttention",
]
