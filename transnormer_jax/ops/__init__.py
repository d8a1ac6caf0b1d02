"""Mathematics on arrays: no Flax, no configuration, no I/O.

Letters, here and everywhere: B batch, N sequence, H heads, K key features per head, V value features per head (in
models also vocabulary), C chunk, D model width, F feed-forward width, L layers. Arrays of tokens are [B, N, H, K].
"""

from transnormer_jax.ops.activation import activation
from transnormer_jax.ops.decay import alibi_slopes, paper_log_decay, released_log_decay
from transnormer_jax.ops.diagonal_attention import DiagonalState, diagonal_attention, resume_diagonal_attention
from transnormer_jax.ops.hardware import interpret_kernels
from transnormer_jax.ops.linear_attention import (
    Problem,
    gated_linear_attention,
    linear_attention,
    normalized_linear_attention,
    resolve_backend,
    token_positions,
)
from transnormer_jax.ops.linear_attention.backends import BACKENDS
from transnormer_jax.ops.normalization import simple_rms_norm, transnormer_rms_norm
from transnormer_jax.ops.position import (
    householder,
    lrpe,
    lrpe_frequencies,
    random_unit_vector,
    rotary,
    rotary_frequencies,
    sinusoids,
)
from transnormer_jax.ops.softmax_attention import KeyValueCache, resume_softmax_attention, softmax_attention

__all__ = [
    "BACKENDS",
    "DiagonalState",
    "KeyValueCache",
    "Problem",
    "activation",
    "alibi_slopes",
    "diagonal_attention",
    "gated_linear_attention",
    "householder",
    "interpret_kernels",
    "linear_attention",
    "lrpe",
    "lrpe_frequencies",
    "normalized_linear_attention",
    "paper_log_decay",
    "random_unit_vector",
    "released_log_decay",
    "resolve_backend",
    "resume_diagonal_attention",
    "resume_softmax_attention",
    "rotary",
    "rotary_frequencies",
    "simple_rms_norm",
    "sinusoids",
    "softmax_attention",
    "token_positions",
    "transnormer_rms_norm",
]
