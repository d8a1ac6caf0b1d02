"""One primitive with one custom gradient, under every backend.

A backend computes, for q [B, N, H, K], k [B, N, H, K], v [B, N, H, V] of one dtype, log_decay [H], the state at one end
of the row [B, H, K, V], and the places of the tokens, in either direction of time

    forward:  out_t = q_t (sum_{s <= t} w(s, t) k_s v_s^T + w(start, t) S_start),   S_end   = the same sum at the end
    reverse:  out_t = q_t (sum_{s >= t} w(t, s) k_s v_s^T + w(t, end) S_end),       S_start = the same sum at the start

with w(s, t) = exp(log_decay * number of steps from s to t), 0 across a document border. The start lies one step before
the first token and the end at the last, so the reverse form is the transpose of the forward form. Hence the gradients
of q, k, v and the state are three calls of the primitive itself (in the manner of arXiv 2405.17381, Algorithm 6), no
state per token is ever kept, and gradients of gradients need nothing more.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.linear_attention.backends import BACKENDS
from transnormer_jax.ops.linear_attention.chunked import chunked
from transnormer_jax.ops.linear_attention.segments import Segments

# The decay's gradient is always taken by chunks of this many tokens, whatever the backend.
_DECAY_GRADIENT_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What is static about a call."""

    backend: str
    chunk_size: int
    reverse: bool = False

    @property
    def opposite(self) -> "Options":
        """The same call in the other direction of time."""
        return dataclasses.replace(self, reverse=not self.reverse)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def primitive(
    options: Options,
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Returns the output in v's dtype and the state at the other end in float32."""
    backend = BACKENDS[options.backend]
    return backend(q, k, v, log_decay, state, segments, reverse=options.reverse, chunk_size=options.chunk_size)


def _forward(options: Options, *operands: Any) -> tuple[Any, Any]:
    return primitive(options, *operands), operands


def _backward(options: Options, operands: Any, cotangents: Any) -> tuple[Array | None, ...]:
    q, k, v, log_decay, state, segments = operands
    d_out, d_state = cotangents
    dq, _ = primitive(options, d_out, v, k, log_decay, _transpose(state), segments)
    dk, _ = primitive(options.opposite, v, d_out, q, log_decay, _transpose(d_state), segments)
    dv, d_initial_state = primitive(options.opposite, k, q, d_out, log_decay, d_state, segments)
    d_log_decay = _log_decay_gradient(options, operands, cotangents)
    return dq, dk, dv, d_log_decay, d_initial_state, None


def _log_decay_gradient(options: Options, operands: Any, cotangents: Any) -> Float[Array, " H"]:
    """The gradient of the decay, in float32.

    sum_t t (q_t . dq_t - k_t . dk_t) + N <S_N, dS_N> is the textbook form. It multiplies small differences by large t,
    and loses digits where the decay is strong and N is long. Differentiating the chunked form instead weighs each decay
    weight by its own distance. Where the decay is a constant, as in TransNormerLLM, jit drops this computation.
    """
    q, k, v, log_decay, state, segments = operands
    q, k, v, d_out = (x.astype(jnp.float32) for x in (q, k, v, cotangents[0]))

    def outputs(log_decay: Array) -> tuple[Array, Array]:
        return chunked(q, k, v, log_decay, state, segments, reverse=options.reverse, chunk_size=_DECAY_GRADIENT_CHUNK)

    return jax.vjp(outputs, log_decay)[1]((d_out, cotangents[1]))[0]


def _transpose(state: Float[Array, "B H K V"]) -> Float[Array, "B H V K"]:
    return jnp.swapaxes(state, -1, -2)


primitive.defvjp(_forward, _backward)
