"""Flax Linen modules: an op plus its parameters, nothing more."""

from transnormer_jax.layers.cosformer_attention import CosformerAttention
from transnormer_jax.layers.diagonal_attention import DiagAttention
from transnormer_jax.layers.feed_forward import FeedForward
from transnormer_jax.layers.lightning_attention import LightningAttention
from transnormer_jax.layers.linear_transformer_attention import LinearTransformerAttention
from transnormer_jax.layers.linformer_attention import LengthProjection, LinformerAttention
from transnormer_jax.layers.lsh_attention import LSHAttention
from transnormer_jax.layers.norm import make_norm
from transnormer_jax.layers.norm_attention import NormAttention
from transnormer_jax.layers.performer_attention import PerformerAttention
from transnormer_jax.layers.places import Places
from transnormer_jax.layers.reversible import ReversibleBlocks
from transnormer_jax.layers.softmax_attention import SoftmaxAttention

__all__ = [
    "CosformerAttention",
    "DiagAttention",
    "FeedForward",
    "LSHAttention",
    "LengthProjection",
    "LightningAttention",
    "LinearTransformerAttention",
    "LinformerAttention",
    "NormAttention",
    "PerformerAttention",
    "Places",
    "ReversibleBlocks",
    "SoftmaxAttention",
    "make_norm",
]
