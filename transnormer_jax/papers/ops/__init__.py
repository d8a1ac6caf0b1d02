"""The mathematics of the papers' baselines, on arrays."""

from transnormer_jax.papers.ops.feature_maps import cosformer_features, favor_features, orthogonal_gaussian
from transnormer_jax.papers.ops.linformer_attention import (
    convolve_length,
    linformer_attention,
    linformer_linear_attention,
    pool_length,
    project_length,
)
from transnormer_jax.papers.ops.lsh_attention import bucket_factors, lsh_attention

__all__ = [
    "bucket_factors",
    "convolve_length",
    "cosformer_features",
    "favor_features",
    "linformer_attention",
    "linformer_linear_attention",
    "lsh_attention",
    "orthogonal_gaussian",
    "pool_length",
    "project_length",
]
