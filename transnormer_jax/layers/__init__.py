"""Flax Linen modules: an op plus its parameters, nothing more."""

from transnormer_jax.layers.diagonal_attention import DiagAttention
from transnormer_jax.layers.feed_forward import FeedForward
from transnormer_jax.layers.lightning_attention import LightningAttention
from transnormer_jax.layers.norm import make_norm
from transnormer_jax.layers.norm_attention import NormAttention
from transnormer_jax.layers.softmax_attention import SoftmaxAttention
from transnormer_jax.layers.token_positions import TokenPositions

__all__ = [
    "DiagAttention",
    "FeedForward",
    "LightningAttention",
    "NormAttention",
    "SoftmaxAttention",
    "TokenPositions",
    "make_norm",
]
