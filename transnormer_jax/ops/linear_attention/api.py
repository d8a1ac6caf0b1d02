"""The operator: linear attention with a decay per head, or per token and head."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention.backends import resolve_backend
from transnormer_jax.ops.linear_attention.call import check, run_on_devices
from transnormer_jax.ops.linear_attention.context import (
    document_states_at_shard,
    document_states_of_row,
    states_at_shard,
    sum_of_later_shards,
)
from transnormer_jax.ops.linear_attention.decay import FLOOR
from transnormer_jax.ops.linear_attention.operands import Operands, Problem
from transnormer_jax.ops.linear_attention.primitive import attend
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.shards import Axes
from transnormer_jax.ops.precision import dot


def linear_attention(
    q: Float[Array, "B N G K"],
    k: Float[Array, "B N G K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array | np.ndarray, "..."] | Sequence[float] | float | None = None,
    *,
    initial_state: Float[Array, "B *S H K V"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    max_segments: int | None = None,
    causal: bool = True,
    scale: float | Float[Array, ""] = 1.0,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B *S H K V"]]:
    """Linear attention: S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T, out_t = scale q_t S_t.

    With a constant decay, NormAttention without its norm (arXiv 2210.10340, section 4.1) and the lightning attention of
    TransNormerLLM (arXiv 2405.17381, eq. 15 to 19); with a decay per token, the core of Mamba-2 (arXiv 2405.21060) and
    of gated RetNet. The newest key has weight 1, as in the released checkpoints. A prefill passes no state and keeps
    the one returned, a decoding step is N = 1, and a long row may be cut anywhere.

    >>> import jax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 4, 8))
    >>> out, state = linear_attention(q, k, v, log_decay=-0.1 * jax.numpy.arange(4.0))
    >>> out.shape, state.shape
    ((2, 100, 4, 8), (2, 4, 8, 8))

    Args:
      q: queries; bfloat16, float16 or float32, the same for q, k and v.
      v: values. V may differ from K, and H may be a multiple of G: value head h goes with query/key head h // (H / G).
      log_decay: <= 0, the log of the factor on the state at each token: None (no decay), a number, [H] constant per
        head, or [B, N, H] per token and head, float32. Slopes such as those of `alibi_slopes` are its negative. Steps
        below -120 count as -120, of which the factor is 0 in float32.
      initial_state: float32, the state before the first token. None is zero. With `max_segments`, [B, S, H, K, V]: one
        for every document.
      segment_ids: documents of packed rows: the state restarts where the id changes. Id 0 is padding: it writes
        nothing, takes no decay and restarts nothing, and its output is 0. So left and right padding leave outputs and
        states of the other tokens as they are. Without `max_segments`, `initial_state` belongs to the first document.
      max_segments: S, the largest number of documents in a row. The state after every document is returned,
        [B, S, H, K, V]; for documents that do not occur, it is the initial one. Outputs of further documents are NaN.
      causal: False lets every token see all of its document, without decay: out = scale q (S_0 + K^T V).
      scale: factor on the output, a number or a float32 scalar; it multiplies q in float32.
      backend: a name in `BACKENDS`, or "auto" (see `resolve_backend`).
      chunk_size: tokens per chunk, for the chunked backends and "pallas_tpu"; the GPU kernels have their own. None is
        the default of the backend.

    Returns:
      The output in v's dtype, and the state after the last token, or after every document, float32.

    On a mesh, rows, heads and tokens are divided over Auto axes by `distributed.RULES`, and over Explicit axes of any
    name as those of q are.

    Differentiable any number of times in q, k, v, log_decay and initial_state, in reverse mode: by
    `jax.jacrev(jax.jacrev(f))`, not by `jax.hessian` or `jax.jvp`.

    Raises:
      UserError: shapes or dtypes do not fit, the backend is unknown or cannot run here, a decay is positive or given
        with causal=False, or a mesh axis has an unknown name. A decay that is an argument of `jit` is not checked.
    """
    if isinstance(log_decay, Sequence | int | float):
        log_decay = np.asarray(log_decay, np.float32)
    batch, num_tokens, num_heads, value_dim = v.shape
    key_heads = q.shape[2]
    decay_shapes = [(), (num_heads,), (batch, num_tokens, num_heads)]
    check(q, k, v, log_decay, decay_shapes, initial_state, segment_ids, max_segments)
    if key_heads == 0 or num_heads % key_heads:
        raise UserError(f"v has {num_heads} heads and q {key_heads}: those of v must be a multiple of those of q.")
    if _is_available(log_decay) and not np.all(np.asarray(log_decay) <= 0):
        raise UserError("log_decay must be <= 0: of slopes, which are positive, pass the negative.")
    if not causal and log_decay is not None:
        raise UserError("causal=False takes no decay: pass log_decay=None, or causal=True.")
    log_decay = jnp.zeros(num_heads, jnp.float32) if log_decay is None else jnp.asarray(log_decay, jnp.float32)
    if log_decay.ndim == 0:
        log_decay = jnp.broadcast_to(log_decay, num_heads)
    sizes = (batch, num_tokens, num_heads, q.shape[3], value_dim, q.dtype, key_heads)
    problem = Problem(*sizes, log_decay.ndim == 3, max_segments, segment_ids is not None)
    backend = resolve_backend(backend, problem, chunk_size=chunk_size)
    run = functools.partial(_run, functools.partial(attend, backend, chunk_size), causal)
    operands = q, k, v, jnp.maximum(log_decay, FLOOR), initial_state
    return run_on_devices(run, *operands, segment_ids, max_segments, scale)


def _run(attend: Callable[..., Any], causal: bool, axis: Axes | None, operands: Operands) -> tuple[Array, Array]:
    """The operator on whole rows, or on this device's shard of each row where `axis` is that of the shards."""
    q, k, v, log_decay, state, segments = operands
    final, by_document = None, state.ndim == 5
    if not causal and segments is None and not by_document:
        kv_sum = _kv_sum(k, v)
        state += kv_sum if axis is None else jax.lax.psum(kv_sum, axis)
        return _query(q, state, v.dtype), state
    if axis is not None and segments is not None and by_document:
        state = document_states_at_shard(k, v, log_decay, state, segments, axis)
    elif axis is not None:
        state, final = states_at_shard(k, v, log_decay, state, segments, axis)
    out, last = attend(operands._replace(state=state))
    if not causal:
        out += _later_tokens(attend, axis, operands)
    if axis is not None and segments is not None and by_document:
        final = document_states_of_row(last, segments, axis)
    return out, last if final is None else final


def _later_tokens(attend: Callable[..., Any], axis: Axes | None, operands: Operands) -> Array:
    """What each token receives from later ones: the row read backwards, less the token itself."""
    q, k, v, log_decay, _, segments = operands
    state = jnp.zeros((v.shape[0], v.shape[2], q.shape[3], v.shape[3]), jnp.float32)
    if segments is not None:
        if axis is not None:
            state = sum_of_later_shards(k, v, segments, axis)
        position, index = (jnp.flip(x[:, -1:] - x, axis=1) for x in segments)
        segments = Segments(position + 1, index)
    flipped_q, flipped_k, flipped_v = (jnp.flip(x, axis=1) for x in (q, k, v))
    out, _ = attend(Operands(flipped_q, flipped_k, flipped_v, log_decay, state, segments))
    own_score = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1, keepdims=True)
    own_score = jnp.repeat(own_score, v.shape[2] // q.shape[2], axis=2)
    return (jnp.flip(out, axis=1) - own_score * v).astype(v.dtype)


def _kv_sum(k: Float[Array, "B N G K"], v: Float[Array, "B N H V"]) -> Float[Array, "B H K V"]:
    kv_sum = dot("bngk,bngrv->bgrkv", k, v.reshape(*k.shape[:3], -1, v.shape[3]))
    return kv_sum.reshape(v.shape[0], v.shape[2], k.shape[3], v.shape[3])


def _query(q: Float[Array, "B N G K"], state: Float[Array, "B H K V"], dtype: Any) -> Float[Array, "B N H V"]:
    state = state.reshape(state.shape[0], q.shape[2], -1, *state.shape[2:]).astype(q.dtype)
    # Heads before tokens: XLA's CPU compiler has no product of bfloat16 for the other order.
    out = dot("bgnk,bgrkv->bgrnv", jnp.swapaxes(q, 1, 2), state)
    return jnp.swapaxes(out.reshape(out.shape[0], -1, *out.shape[3:]), 1, 2).astype(dtype)


def _is_available(x: Array | np.ndarray | None) -> bool:
    """Whether its numbers can be read: it is neither traced nor on devices of other processes."""
    if isinstance(x, jax.Array):
        return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
    return x is not None
