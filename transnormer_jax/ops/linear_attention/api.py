"""The operator: linear attention with a decay per head."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention.backends import Problem, resolve_backend
from transnormer_jax.ops.linear_attention.context import part_states
from transnormer_jax.ops.linear_attention.primitive import Options, primitive
from transnormer_jax.ops.linear_attention.segments import Segments, find_segments, id_before_part
from transnormer_jax.ops.linear_attention.shards import part_axis, per_device, specs
from transnormer_jax.ops.precision import dot

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def linear_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array | np.ndarray, " H"] | Sequence[float] | None = None,
    *,
    initial_state: Float[Array, "B H K V"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    causal: bool = True,
    scale: float | Float[Array, ""] = 1.0,
    backend: str = "auto",
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B H K V"]]:
    """Linear attention: S_t = exp(log_decay) S_{t-1} + k_t v_t^T, out_t = scale q_t S_t.

    NormAttention without its norm (arXiv 2210.10340, section 4.1); TransNormerLLM (arXiv 2405.17381, eq. 15 to 19).
    The newest key has weight 1, as in the released checkpoints. Composition gives the rest: a prefill passes no state
    and keeps the one returned, a decoding step is N = 1, a long row may be cut anywhere.

    >>> import jax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 4, 8))
    >>> out, state = linear_attention(q, k, v, log_decay=-0.1 * jax.numpy.arange(4.0))
    >>> out.shape, state.shape
    ((2, 100, 4, 8), (2, 4, 8, 8))

    Args:
      q: [B, N, H, K] queries; bfloat16, float16 or float32, the same for q, k and v.
      k: [B, N, H, K] keys.
      v: [B, N, H, V] values; V may differ from K.
      log_decay: [H] float32, <= 0 and finite: log of the factor on the state at each token, the same at every token.
        None is no decay. Slopes such as those of `alibi_slopes` are its negative.
      initial_state: [B, H, K, V] float32, the state before the first token. None is zero.
      segment_ids: [B, N] int32, the documents of packed rows: the state restarts where the id changes. Id 0 is padding:
        it writes nothing, takes no decay and restarts nothing, and its output is 0. So left and right padding leave the
        outputs and the state of the real tokens as they are. `initial_state` belongs to the first document.
      causal: False lets every token see all of its document, without decay: out = scale q (S_0 + K^T V). Where a row
        is one document, without segment_ids and whole on its device, that is computed as it is written, by no backend.
      scale: factor on the output, a number or a float32 scalar; it multiplies q in float32.
      backend: a name in `BACKENDS`, or "auto" (see `resolve_backend`).
      chunk_size: tokens per chunk, for the chunked backends and "pallas_tpu"; the GPU kernels have their own. None is
        the default of the backend.

    Returns:
      out [B, N, H, V] in v's dtype, and the state after the last token, [B, H, K, V] float32.

    On a mesh, rows, heads and tokens are divided by `distributed.RULES`; its axes must be of type Auto, which is not
    the default of `jax.make_mesh`.

    Differentiable any number of times in q, k, v, log_decay and initial_state, in reverse mode: by
    `jax.jacrev(jax.jacrev(f))`, not by `jax.hessian` or `jax.jvp`.

    Raises:
      UserError: shapes or dtypes do not fit, the backend is unknown, a decay is positive, not finite or given with
        causal=False, or the mesh has an Explicit axis. A decay that is an argument of `jit` is not looked at.
    """
    if isinstance(log_decay, Sequence):
        log_decay = np.asarray(log_decay, np.float32)
    _check(q, k, v, log_decay, initial_state, segment_ids, causal)
    problem = Problem.of(q, v)
    options = Options(resolve_backend(backend, problem, chunk_size=chunk_size), chunk_size)

    log_decay = jnp.zeros(q.shape[2], jnp.float32) if log_decay is None else jnp.asarray(log_decay, jnp.float32)
    if initial_state is None:
        initial_state = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), jnp.float32)
    initial_state = initial_state.astype(jnp.float32)
    if q.shape[1] == 0:
        return v, initial_state
    if not (isinstance(scale, int | float) and scale == 1):
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    axis = part_axis(q.shape[1])
    attend: Callable[..., Any] = functools.partial(_attend, options, causal, axis)
    if axis is not None:
        spec = specs(*q.shape[:3])
        in_specs = (spec.tokens, spec.tokens, spec.tokens, spec.heads, spec.state, spec.places)
        attend = per_device(attend, in_specs, (spec.tokens, spec.state))
    return attend(q, k, v, log_decay, initial_state, segment_ids)


def _attend(
    options: Options,
    causal: bool,
    axis: str | None,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Array,
    segment_ids: Array | None,
) -> tuple[Array, Array]:
    """The operator on whole rows, or on this device's part of them where `axis` is that of the parts."""
    if not causal and axis is None and segment_ids is None:
        state += dot("bnhk,bnhv->bhkv", k, v)
        # Heads before tokens: XLA's CPU compiler has no product of bfloat16 for the other order.
        out = dot("bhnk,bhkv->bhnv", jnp.swapaxes(q, 1, 2), state.astype(q.dtype))
        return jnp.swapaxes(out, 1, 2).astype(v.dtype), state
    segments = None
    if segment_ids is not None:
        segments = find_segments(segment_ids, None if axis is None else id_before_part(segment_ids, axis))
        real = (segment_ids != 0)[..., None, None]
        q, k, v = (jnp.where(real, x, jnp.zeros_like(x)) for x in (q, k, v))
    if axis is None:
        out, state = primitive(options, q, k, v, log_decay, state, segments)
    else:
        entering, state = part_states(k, v, log_decay, state, segments, axis)
        out, _ = primitive(options, q, k, v, log_decay, entering, segments)
    if not causal:
        out += _later_tokens(options, axis, q, k, v, segments)
    return out, state


def _later_tokens(options: Options, axis: str | None, q: Array, k: Array, v: Array, segments: Segments | None) -> Array:
    """What each token receives from those after it: the reverse pass less the token itself, which it counts again."""
    log_decay = jnp.zeros(q.shape[2], jnp.float32)
    state = jnp.zeros((q.shape[0], q.shape[2], q.shape[3], v.shape[3]), jnp.float32)
    if axis is not None:
        state, _ = part_states(k, v, log_decay, state, segments, axis, reverse=True)
    from_here_on, _ = primitive(options.opposite, q, k, v, log_decay, state, segments)
    own_score = jnp.sum(q.astype(jnp.float32) * k.astype(jnp.float32), axis=-1, keepdims=True)
    return (from_here_on - own_score * v).astype(v.dtype)


def _check(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array | np.ndarray | None,
    initial_state: Array | None,
    segment_ids: Array | None,
    causal: bool,
) -> None:
    expected = {
        "k": (k, q.shape),
        "v": (v, (*q.shape[:3], v.shape[-1])),
        "log_decay": (log_decay, q.shape[2:3]),
        "initial_state": (initial_state, (q.shape[0], *q.shape[2:], v.shape[-1])),
        "segment_ids": (segment_ids, q.shape[:2]),
    }
    if q.ndim != 4:
        raise UserError(f"q has shape {q.shape}: give [B, N, H, K].")
    for name, (array, shape) in expected.items():
        if array is not None and array.shape != shape:
            raise UserError(f"{name} has shape {array.shape}: with q {q.shape} and v {v.shape} it must be {shape}.")
    if not (q.dtype == k.dtype == v.dtype) or q.dtype not in _DTYPES:
        raise UserError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: give one dtype among bfloat16, float16 and float32."
        )
    if _is_at_hand(log_decay) and not np.all((np.asarray(log_decay) <= 0) & (np.asarray(log_decay) > -np.inf)):
        raise UserError("log_decay must be <= 0 and finite: of slopes, which are positive, pass the negative.")
    if not causal and log_decay is not None:
        raise UserError("causal=False takes no decay: pass log_decay=None, or causal=True.")


def _is_at_hand(x: Array | np.ndarray | None) -> bool:
    """Whether its numbers can be looked at: it is neither traced nor on devices of other processes."""
    if isinstance(x, jax.Array):
        return not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
    return x is not None
