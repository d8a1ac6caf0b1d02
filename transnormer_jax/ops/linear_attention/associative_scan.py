"""Linear attention by `jax.lax.associative_scan` over tokens: logarithmic depth, and a K x V state for every token.

The formulation to measure the others against: it reads and writes N K V numbers where a chunk needs N (K + V). It is
the chunked form with one token per chunk, in float32.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention import chunked
from transnormer_jax.ops.linear_attention.operands import Gradients, Operands, State


def forward(operands: Operands, *, save: bool, **_: Any) -> tuple[Float[Array, "B N H V"], State, Any]:
    """Every state at once."""
    out, final, saved = chunked.forward(_widen(operands), chunk_size=1, parallel=True, save=save)
    return out.astype(operands.v.dtype), final, saved


def backward(
    operands: Operands, saved: Any, d_out: Float[Array, "B N H V"], d_final: State, *, decay_gradient: bool, **_: Any
) -> Gradients:
    """A second scan, from the other end."""
    options: dict[str, Any] = {"decay_gradient": decay_gradient, "chunk_size": 1, "parallel": True}
    gradients = chunked.backward(_widen(operands), saved, d_out.astype(jnp.float32), d_final, **options)
    dq, dk, dv = (x.astype(operands.v.dtype) for x in gradients[:3])
    return gradients._replace(q=dq, k=dk, v=dv)


def _widen(operands: Operands) -> Operands:
    q, k, v = (x.astype(jnp.float32) for x in operands[:3])
    return operands._replace(q=q, k=k, v=v)
