"""Flax Linen modules: an op plus its parameters, nothing more."""

from transnormer_jax.layers.diagonal_attention import DiagAttention
from transnormer_jax.layers.feed_forward import FeedForward, GatedFeedForward
from transnormer_jax.layers.gated_linear_attention import GatedLinearAttention
from transnormer_jax.layers.norm import make_norm
from transnormer_jax.layers.norm_attention import NormAttention
from transnormer_jax.layers.places import Places
from transnormer_jax.layers.reversible import ReversibleBlocks
from transnormer_jax.layers.simple_glu import SimpleGLU
from transnormer_jax.layers.softmax_attention import SoftmaxAttention

__all__ = [
    "DiagAttention",
    "FeedForward",
    "GatedFeedForward",
    "GatedLinearAttention",
    "NormAttention",
    "Places",
    "ReversibleBlocks",
    "SimpleGLU",
    "SoftmaxAttention",
    "make_norm",
]
