"""The shared entry of `linear_attention` and `gated_linear_attention`: checks the arguments, shards the work."""

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from transnormer_jax.errors import UserError
from transnormer_jax.ops.linear_attention.context import first_document_of_shard
from transnormer_jax.ops.linear_attention.operands import Operands
from transnormer_jax.ops.linear_attention.segments import find_segments, id_before_shard
from transnormer_jax.ops.linear_attention.shards import Axes, find_sharding, per_device

_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


def check(
    q: Array,
    k: Array,
    v: Array,
    log_decay: Any,
    decay_shapes: list[tuple[int, ...]],
    initial_state: Array | None,
    segment_ids: Array | None,
    max_segments: int | None,
) -> None:
    """Raises UserError in one sentence where shapes and dtypes do not fit."""
    if q.ndim != 4 or v.ndim != 4:
        raise UserError(f"q has shape {q.shape} and v {v.shape}: give [B, N, H, K] and [B, N, H, V].")
    rows, num_heads = q.shape[:2], v.shape[2]
    documents = () if max_segments is None else (max_segments,)
    expected = {
        "k": (k, [q.shape]),
        "v": (v, [(*rows, num_heads, v.shape[3])]),
        "log_decay": (log_decay, decay_shapes),
        "initial_state": (initial_state, [(rows[0], *documents, num_heads, q.shape[3], v.shape[3])]),
        "segment_ids": (segment_ids, [rows]),
    }
    for name, (array, shapes) in expected.items():
        if array is not None and array.shape not in shapes:
            allowed = " or ".join(map(str, shapes))
            raise UserError(f"{name} has shape {array.shape}: with q {q.shape} and v {v.shape} it must be {allowed}.")
    if max_segments is not None and max_segments < 1:
        raise UserError(f"max_segments is {max_segments}: give the largest number of documents in a row, or None.")
    if not (q.dtype == k.dtype == v.dtype) or q.dtype not in _DTYPES:
        raise UserError(
            f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}: give one dtype among bfloat16, float16 and float32."
        )


def run_on_devices(
    run: Callable[..., Any],
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    initial_state: Array | None,
    segment_ids: Array | None,
    max_segments: int | None,
    scale: float | Array,
) -> tuple[Array, Array]:
    """run(axis, operands) for the rows and heads of each device; `axis` is that of the mesh which divides rows."""
    batch, num_tokens, num_heads, value_dim = v.shape
    documents = () if max_segments is None else (max_segments,)
    if initial_state is None:
        initial_state = jnp.zeros((batch, *documents, num_heads, q.shape[3], value_dim), jnp.float32)
    initial_state = initial_state.astype(jnp.float32)
    if batch == 0 or num_tokens == 0:
        return v, initial_state
    if not (isinstance(scale, int | float) and scale == 1):
        q = (q.astype(jnp.float32) * scale).astype(q.dtype)
    operands = Operands(q, k, v, log_decay, initial_state, None)
    per_token = [log_decay] if log_decay.ndim > 1 else []
    sharding = find_sharding(q, q.shape[2], k, v, *per_token)
    if sharding is None:
        return _run_on_device(run, None, operands, segment_ids)
    tokens: Any = sharding.of("bnhk")
    state: Any = sharding.of("bshkv" if documents else "bhkv")
    decay: Any = sharding.of("bnhk"[: log_decay.ndim] if per_token else "h")
    specs = Operands(tokens, tokens, tokens, decay, state, None), None if segment_ids is None else sharding.of("bn")
    on_device = functools.partial(_run_on_device, run, sharding.tokens)
    return per_device(on_device, specs, (tokens, state))(operands, segment_ids)


def _run_on_device(
    run: Callable[..., Any], axis: Axes | None, operands: Operands, segment_ids: Array | None
) -> tuple[Array, Array]:
    by_document = operands.state.ndim == 5
    if segment_ids is None and (axis is None or not by_document):
        return run(axis, operands)
    if segment_ids is None:
        segment_ids = jnp.ones(operands.v.shape[:2], jnp.int32)
    segments = find_segments(segment_ids, None if axis is None else id_before_shard(segment_ids, axis))
    real = segment_ids != 0

    def at_tokens(x: Array) -> Array:  # zero at padding
        return jnp.where(jnp.expand_dims(real, range(2, x.ndim)), x, jnp.zeros_like(x))

    q, k, v, log_decay = (x if x.ndim == 1 else at_tokens(x) for x in operands[:4])
    out, final = run(axis, Operands(q, k, v, log_decay, operands.state, segments))
    if by_document:
        index = segments.segment_index
        if axis is not None:
            index += first_document_of_shard(segments, axis)[:, None]
        out = jnp.where((index < operands.state.shape[1])[..., None, None], out, jnp.nan)
    return out, final
