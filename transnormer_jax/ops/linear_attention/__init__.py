"""Linear attention with decay: one function, many backends, one gradient."""

from transnormer_jax.ops.linear_attention.api import linear_attention
from transnormer_jax.ops.linear_attention.backends import BACKENDS, Backend, resolve_backend
from transnormer_jax.ops.linear_attention.gated import gated_linear_attention
from transnormer_jax.ops.linear_attention.normalized import normalized_linear_attention
from transnormer_jax.ops.linear_attention.operands import Problem
from transnormer_jax.ops.linear_attention.segments import token_positions

__all__ = [
    "BACKENDS",
    "Backend",
    "Problem",
    "gated_linear_attention",
    "linear_attention",
    "normalized_linear_attention",
    "resolve_backend",
    "token_positions",
]
