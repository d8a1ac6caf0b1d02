"""Gated linear attention: a decay per key channel and token (GLA, HGRN2), in chunks, by XLA on every platform.

The score of a query at t and a key at s is sum_k q_tk k_sk exp(g_{s+1,k} + ... + g_tk). A matrix product can compute
it if the exponential is split into a factor of the query and a factor of the key. With c the cumulative sum of g, these
are exp(c_t) and exp(-c_s), and the second overflows. So a chunk is halved again and again: between two halves, the key
takes the decay up to their border, and the query the decay from there. A chunk of 64 tokens is halved six times.

Every exponent is a sum of log decays and never a difference of sums. So none is positive, and none loses digits where
strong decays are among weak ones. A document forgets what came before it by a step of `FLOOR`, whose factor is 0.

Letters of the products: b row, m chunk of a block, h head, t and s token, k and v features.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from transnormer_jax.errors import UserError
from transnormer_jax.ops.blocks import split_blocks
from transnormer_jax.ops.hardware import target_hardware
from transnormer_jax.ops.linear_attention.call import check, run_on_devices
from transnormer_jax.ops.linear_attention.decay import FLOOR, scan_states
from transnormer_jax.ops.linear_attention.documents import (
    ChunkDocuments,
    cross_chunks,
    find_layout,
    set_states,
    states_of,
)
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.shards import Axes
from transnormer_jax.ops.precision import dot

# Tokens of one step of the scan over a row: their temporary arrays fit into the cache of a CPU core.
_BLOCK = 256


def gated_linear_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, "B N H K"],
    *,
    initial_state: Float[Array, "B *S H K V"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    max_segments: int | None = None,
    scale: float | Float[Array, ""] = 1.0,
    chunk_size: int | None = None,
) -> tuple[Float[Array, "B N H V"], Float[Array, "B *S H K V"]]:
    """Linear attention with a decay per key channel and token, as in GLA and HGRN2.

    S_t = diag(exp(log_decay_t)) S_{t-1} + k_t v_t^T, out_t = scale q_t S_t: GLA (arXiv 2312.06635, section 4.1), and
    HGRN2 (arXiv 2404.07904), whose keys are 1 - exp(log_decay). For a decay per head, `linear_attention` is faster.

    >>> import jax
    >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 100, 4, 8))
    >>> out, state = gated_linear_attention(q, k, v, jax.nn.log_sigmoid(k))
    >>> out.shape, state.shape
    ((2, 100, 4, 8), (2, 4, 8, 8))

    `q`, `k`, `v`, `initial_state`, `segment_ids`, `max_segments` and `scale` are as in `linear_attention`, with as many
    heads of q and k as of v. `log_decay` is float32 and <= 0; steps below -120 count as -120, of which the factor is 0
    in float32. `chunk_size` is a power of 2; None is 64.

    Returns:
      The output in v's dtype, and the state after the last token, or after every document, float32.

    On a mesh, work is divided as in `linear_attention`. Differentiable any number of times; the backward pass computes
    each block of the row again and keeps one state per block.

    Raises:
      UserError: shapes or dtypes do not fit, `chunk_size` is no power of 2, or a mesh axis has an unknown name.
    """
    check(q, k, v, log_decay, [q.shape], initial_state, segment_ids, max_segments)
    if v.shape[2] != q.shape[2]:
        raise UserError(f"v has {v.shape[2]} heads and q {q.shape[2]}: give as many of both.")
    if chunk_size is not None and (chunk_size < 1 or chunk_size & (chunk_size - 1)):
        raise UserError(f"chunk_size is {chunk_size}: a gated chunk is halved repeatedly, so give a power of 2.")
    operands = q, k, v, jnp.maximum(log_decay.astype(jnp.float32), FLOOR), initial_state
    return run_on_devices(functools.partial(_run, chunk_size), *operands, segment_ids, max_segments, scale)


def _run(chunk_size: int | None, axis: Axes | None, operands: Operands) -> tuple[Array, Array]:
    """The operator on whole rows, or on this device's shard of each row where `axis` is that of the shards."""
    q, k, v, log_decay, state, segments = operands
    if axis is not None and state.ndim == 5:
        raise UserError("max_segments needs whole rows on each device: use a mesh whose context axis has size 1.")
    if segments is not None and state.ndim == 4:
        starts = jnp.diff(segments.segment_index, axis=1, prepend=0) > 0
        log_decay = jnp.where(starts[..., None, None], FLOOR, log_decay)
    final = None
    if axis is not None:
        state, final = _states_at_shard(k, v, log_decay, state, axis)
    out, last = _chunked(q, k, v, log_decay, state, segments, chunk_size)
    return out, last if final is None else final


def _chunked(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Float[Array, "B *S H K V"],
    segments: Segments | None,
    chunk_size: int | None,
) -> tuple[Array, Array]:
    batch, num_tokens = q.shape[:2]
    by_document = state.ndim == 5
    chunk = min(chunk_size or 64, 1 << (num_tokens - 1).bit_length())
    num_chunks = -(-(num_tokens + by_document * state.shape[1] * (chunk - 1)) // chunk)
    block = min(max(_BLOCK // chunk, 1), num_chunks)  # in chunks
    num_chunks += -num_chunks % block
    layout = find_layout(segments, batch, num_tokens, state.shape[1], chunk, num_chunks) if by_document else None

    def split(x: Array) -> Array:  # [block, b, m, ...]
        x = split_blocks(x, block)
        return jnp.moveaxis(x, 1, 0)

    def split_tokens(x: Array) -> Array:  # [block, b, m, h, t, k]
        if layout is None:
            x = jnp.pad(x, ((0, 0), (0, num_chunks * chunk - num_tokens), (0, 0), (0, 0)))
        else:
            x = layout.lay_out(x)
        return jnp.swapaxes(split(split_blocks(x, chunk)), 3, 4)

    # A channel is a head of one feature to the functions that decay states: [b, m, (h, k), 1, v].
    initial = state[..., None, :]

    @jax.checkpoint
    def step(carry: tuple[Array, Array], xs: Any) -> tuple[tuple[Array, Array], Array]:
        (state, final_states), (q, k, v, log_decay, documents) = carry, xs
        scores, from_left, to_right = _scores(q, k, log_decay)
        kv_sum = dot("bmhtk,bmhtv->bmhkv", _scale(k, to_right), v)[..., None, :]
        enters = None if documents is None else (documents.first, states_of(initial, documents.document))
        before, after = cross_chunks(state, jnp.expm1(from_left[..., -1, :]), kv_sum, enters, parallel=False)
        out = dot("bmhts,bmhsv->bmhtv", scores.astype(v.dtype), v)
        out += dot("bmhtk,bmhkv->bmhtv", _scale(q, from_left), before[..., 0, :].astype(q.dtype))
        if documents is not None:
            final_states = set_states(final_states, documents.document, documents.last, after)
        return (after[:, -1], final_states), out.astype(v.dtype)

    documents = None if layout is None else ChunkDocuments(*(split(x) for x in layout.chunks))
    first = jnp.zeros_like(initial[:, 0]) if by_document else initial
    xs = (*(split_tokens(x) for x in (q, k, v, log_decay)), documents)
    (last, final_states), out = jax.lax.scan(step, (first, initial), xs)
    out = jnp.swapaxes(jnp.moveaxis(out, 0, 1), 3, 4).reshape(batch, num_chunks * chunk, *v.shape[2:])
    out = out[:, :num_tokens] if layout is None else layout.take_back(out)
    return out, (last if layout is None else final_states)[..., 0, :]


def _scores(
    q: Float[Array, "*batch C K"], k: Float[Array, "*batch C K"], log_decay: Float[Array, "*batch C K"]
) -> tuple[Float[Array, "*batch C C"], Float[Array, "*batch C K"], Float[Array, "*batch C K"]]:
    """The masked, decayed scores of chunks, and the log decay from the left border to a token and on to the right one.

    On GPUs and TPUs, every halving is a product of whole chunks, masked, because small products fill neither. A CPU
    does so for 8 tokens, and joins neighbouring blocks until one is left, which takes half as long.
    """
    batch, chunk = q.shape[:-2], q.shape[-2]
    size = min(8, chunk) if target_hardware().platform == "cpu" else chunk
    # [chunk, block, token, k]; with more dimensions, `jax.vmap` soon makes the eight at which XLA aborts on a CPU.
    q, k, log_decay = (x.reshape(-1, chunk // size, size, x.shape[-1]) for x in (q, k, log_decay))
    steps, pairs = _halvings(size)
    sums = dot("ltu,xnuk->xnltk", jnp.asarray(steps, jnp.float32), log_decay)
    levels, from_left, to_right = sums[:, :, :-2], sums[:, :, -2], sums[:, :, -1]
    scores = dot("xnltk,xnlsk->xnlts", *(_scale(x[:, :, None], levels) for x in (q, k)))
    scores = jnp.sum(jnp.where(jnp.asarray(pairs)[None, None], scores, 0), axis=2)
    while q.shape[1] > 1:
        (q_1, q_2), (k_1, k_2), (s_1, s_2), (left_1, left_2), (right_1, right_2) = (
            jnp.unstack(x.reshape(x.shape[0], -1, 2, *x.shape[2:]), axis=2) for x in (q, k, scores, from_left, to_right)
        )
        across = dot("xntk,xnsk->xnts", _scale(q_2, left_2), _scale(k_1, right_1))
        scores = jnp.block([[s_1, jnp.zeros_like(across)], [across, s_2]])
        from_left = jnp.concatenate([left_1, left_2 + left_1[..., -1:, :]], axis=-2)
        to_right = jnp.concatenate([right_1 + left_2[..., -1:, :], right_2], axis=-2)
        q, k = jnp.concatenate([q_1, q_2], axis=-2), jnp.concatenate([k_1, k_2], axis=-2)
    from_left, to_right = (x.reshape(*batch, chunk, -1) for x in (from_left, to_right))
    return scores.reshape(*batch, chunk, chunk), from_left, to_right


def _halvings(size: int) -> tuple[np.ndarray, np.ndarray]:
    """For a token with itself and for each halving: whose log decay each token sums up, and for which pairs it is.

    Returns:
      steps [L + 2, size, size] bool: at [l, t, u], whether token t includes the log decay of u. The last two are the
      sums from the left border to a token and on to the right border.
      pairs [L, size, size] bool: at [l, t, s], whether level l gives the score of the query at t and the key at s.
    """
    t = np.arange(size)
    itself, past, future = np.eye(size, dtype=bool), t[:, None] >= t, t[:, None] < t
    steps, pairs = [np.zeros_like(itself)], [itself]
    for width in 2 ** np.arange(size.bit_length() - 1):
        half = t // width
        is_second = (half % 2 == 1)[:, None]
        steps.append((half[:, None] == half) & np.where(is_second, past, future))
        pairs.append((half[:, None] == half + 1) & is_second)
    return np.stack([*steps, past, future]), np.stack(pairs)


def _scale(x: Float[Array, "..."], log_weight: Float[Array, "..."]) -> Float[Array, "..."]:
    """Multiplies in float32, so that a 16-bit result is rounded once."""
    return (x * jnp.exp(log_weight)).astype(x.dtype)


def _states_at_shard(k: Array, v: Array, log_decay: Array, state: Array, axis: Axes) -> tuple[Array, Array]:
    """The state that enters this device's shard, and the one that leaves the row; see `context.states_at_shard`."""
    from_right = jax.lax.cumsum(log_decay, axis=1, reverse=True)
    after = jnp.pad(from_right[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    kv_sum = dot("bnhk,bnhv->bhkv", _scale(k, after), v)[..., None, :]
    chunk_decay, kv_sums = jax.lax.all_gather((jnp.expm1(from_right[:, 0]), kv_sum), axis, axis=1)
    before, after = scan_states(state[..., None, :], chunk_decay, kv_sums)
    before = jax.lax.dynamic_index_in_dim(before, jax.lax.axis_index(axis), 1, keepdims=False)
    return before[..., 0, :], after[:, -1, ..., 0, :]
