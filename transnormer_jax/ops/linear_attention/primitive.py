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
from transnormer_jax.ops.linear_attention.shards import per_device, specs

# The decay's gradient is always taken by chunks of this many tokens, whatever the backend.
_DECAY_GRADIENT_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Options:
    """What is static about a call."""

    backend: str
    chunk_size: int | None
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
    return _run(options, "attend", q, k, v, log_decay, state, segments)


def _run(options: Options, name: str, *operands: Any) -> Any:
    """Calls a function of the backend, a kernel on each device's share of rows and heads."""
    backend = BACKENDS[options.backend]
    function = functools.partial(getattr(backend, name), reverse=options.reverse, chunk_size=options.chunk_size)
    if not backend.is_kernel:
        return function(*operands)
    tokens, heads, state, places, saved = specs(*operands[0].shape[:3])
    out_specs = {
        "attend": (tokens, state),
        "attend_and_save": (tokens, state, saved),
        "gradients": (tokens, tokens, tokens, state),
    }[name]
    in_specs = (tokens, tokens, tokens, heads, state, places, saved, tokens, state)[: len(operands)]
    return per_device(function, in_specs, out_specs)(*operands)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _primitive_and_saved(options: Options, *operands: Any) -> tuple[Array, Array, Any]:
    """The primitive, and what the backend's own gradient takes besides the operands."""
    if BACKENDS[options.backend].attend_and_save is None:
        return *primitive(options, *operands), None
    return _run(options, "attend_and_save", *operands)


def _forward(options: Options, *operands: Any) -> tuple[Any, Any]:
    out, state, saved = _primitive_and_saved(options, *operands)
    return (out, state), (operands, saved)


def _forward_and_saved(options: Options, *operands: Any) -> tuple[Any, Any]:
    results = _primitive_and_saved(options, *operands)
    return results, (operands, results[2])


def _backward(options: Options, residuals: Any, cotangents: Any) -> tuple[Array | None, ...]:
    operands, saved = residuals
    cotangents = cotangents[:2]  # what was saved is a function of the operands, and `_gradients` treats it so
    dq, dk, dv, d_state = _gradients(options, saved, *operands, *cotangents)
    return dq, dk, dv, _log_decay_gradient(options, operands, cotangents), d_state, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(options: Options, saved: Any, *operands: Any) -> tuple[Array, ...]:
    """dq, dk, dv and the gradient of the state: fused where the backend knows how, else by three calls."""
    if BACKENDS[options.backend].gradients is None:
        return _three_calls(options, *operands)
    return _run(options, "gradients", *operands[:6], saved, *operands[6:])


def _gradients_forward(options: Options, saved: Any, *operands: Any) -> tuple[Any, Any]:
    return _gradients(options, saved, *operands), (saved, operands)


def _gradients_backward(options: Options, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    # A fused gradient equals the three calls, which can be differentiated.
    saved, operands = residuals
    pull_back = jax.vjp(functools.partial(_three_calls, options), *operands)[1]
    return jax.tree.map(jnp.zeros_like, saved), *pull_back(cotangents)


def _three_calls(
    options: Options,
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    state: Float[Array, "B H K V"],
    segments: Segments | None,
    d_out: Float[Array, "B N H V"],
    d_state: Float[Array, "B H K V"],
) -> tuple[Array, ...]:
    dq, _ = primitive(options, d_out, v, k, log_decay, _transpose(state), segments)
    dk, _ = primitive(options.opposite, v, d_out, q, log_decay, _transpose(d_state), segments)
    dv, d_initial_state = primitive(options.opposite, k, q, d_out, log_decay, d_state, segments)
    return dq, dk, dv, d_initial_state


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
_primitive_and_saved.defvjp(_forward_and_saved, _backward)
_gradients.defvjp(_gradients_forward, _gradients_backward)
