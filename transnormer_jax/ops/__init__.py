"""Mathematics on arrays: no Flax, no configuration, no mesh, no I/O.

Letters, here and everywhere: B batch, N sequence, H heads, K key features per head, V value features per head, C chunk,
D model width, F feed-forward width, L layers. Arrays of tokens are [B, N, H, K].
"""

from transnormer_jax.ops.activation import activation
from transnormer_jax.ops.decay import alibi_slopes, paper_log_decay, released_log_decay
from transnormer_jax.ops.hardware import interpret_kernels
from transnormer_jax.ops.linear_attention import (
    linear_attention,
    normalized_linear_attention,
    resolve_backend,
    token_positions,
)
from transnormer_jax.ops.normalization import simple_rms_norm
from transnormer_jax.ops.position import lrpe, lrpe_frequencies

__all__ = [
    "activation",
    "alibi_slopes",
    "interpret_kernels",
    "linear_attention",
    "lrpe",
    "lrpe_frequencies",
    "normalized_linear_attention",
    "paper_log_decay",
    "released_log_decay",
    "resolve_backend",
    "simple_rms_norm",
    "token_positions",
]
