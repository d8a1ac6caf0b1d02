"""Chunked linear attention: matrix products inside a chunk of tokens, one state from chunk to chunk.

The state that enters each chunk is found by a scan over chunks, which is either sequential (`jax.lax.scan`) or
parallel (`jax.lax.associative_scan`, logarithmic depth). One chunk that covers the row is the quadratic form.

TransNormerLLM's lightning attention (arXiv 2401.04658, Algorithm 1) without its positive exponents.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from transnormer_jax.ops.blocks import join_blocks, split_blocks
from transnormer_jax.ops.linear_attention.segments import Segments
from transnormer_jax.ops.linear_attention.weights import State, block_weights, pass_on
from transnormer_jax.ops.precision import dot


def default_chunk_size(key_dim: int, value_dim: int) -> int:
    """About as many tokens as a head has features, so that the work inside chunks and the states weigh the same."""
    return 64 if max(key_dim, value_dim) <= 64 else 128


def chunked(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    initial_state: State,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
    parallel_carry: bool = False,
) -> tuple[Float[Array, "B N H V"], State]:
    """Linear attention by chunks of `chunk_size` tokens; see `primitive.py` for the contract of a backend."""
    num_tokens = q.shape[1]
    chunk_size = min(chunk_size or default_chunk_size(q.shape[3], v.shape[3]), num_tokens)
    num_chunks = -(-num_tokens // chunk_size)
    padding = num_chunks * chunk_size - num_tokens

    if segments is not None:
        segments = Segments(*(jnp.pad(x, ((0, 0), (0, padding)), mode="edge") for x in segments))
    weights = block_weights(log_decay, num_tokens, num_chunks, chunk_size, segments)
    if reverse:
        weights = weights.reversed()

    q, k, v = (jnp.swapaxes(split_blocks(x, chunk_size), 2, 3) for x in (q, k, v))  # [B, M, H, C, K]

    with jax.named_scope("chunk_states"):
        written = dot("bmhck,bmhcv->bmhkv", k * weights.tail[..., None].astype(k.dtype), v)
        carry = _parallel_carry if parallel_carry else _sequential_carry
        incoming, final_state = carry(weights.fade, written, initial_state, reverse=reverse)
    with jax.named_scope("within_chunk"):
        scores = dot("bmhck,bmhsk->bmhcs", q, k) * weights.intra
        out = dot("bmhcs,bmhsv->bmhcv", scores.astype(v.dtype), v)
    with jax.named_scope("across_chunks"):
        out += weights.head[..., None] * dot("bmhck,bmhkv->bmhcv", q, incoming.astype(q.dtype))
    return join_blocks(jnp.swapaxes(out, 2, 3), num_tokens).astype(v.dtype), final_state


def quadratic(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    log_decay: Float[Array, " H"],
    initial_state: State,
    segments: Segments | None,
    *,
    reverse: bool,
    chunk_size: int | None,
) -> tuple[Float[Array, "B N H V"], State]:
    """The masked N x N matrix (q k^T * decay) v: one chunk that covers the row."""
    del chunk_size
    return chunked(q, k, v, log_decay, initial_state, segments, reverse=reverse, chunk_size=q.shape[1])


def _sequential_carry(
    fade: Float[Array, "#B M H"], written: Float[Array, "B M H K V"], initial_state: State, *, reverse: bool
) -> tuple[Float[Array, "B M H K V"], State]:
    """The state at the near end of every chunk, and after the last: `pass_on` by each chunk."""

    def step(state: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        fade, written = chunk
        return pass_on(state, fade[..., None, None], written), state

    chunks = (jnp.moveaxis(fade, 1, 0), jnp.moveaxis(written, 1, 0))
    final_state, incoming = jax.lax.scan(step, initial_state, chunks, reverse=reverse)
    return jnp.moveaxis(incoming, 0, 1), final_state


def _parallel_carry(
    fade: Float[Array, "#B M H"], written: Float[Array, "B M H K V"], initial_state: State, *, reverse: bool
) -> tuple[Float[Array, "B M H K V"], State]:
    """The same by an associative scan over chunks."""
    # The initial state enters as one more chunk at its end of the row, which forgets all and writes that state.
    pad = (0, 1) if reverse else (1, 0)
    fade = jnp.pad(fade, ((0, 0), pad, (0, 0)), constant_values=-1.0)
    write = [written, initial_state[:, None]] if reverse else [initial_state[:, None], written]
    elements = [fade, jnp.concatenate(write, axis=1)]

    def combine(earlier: list[Array], later: list[Array]) -> list[Array]:
        fade = later[0]
        # (1 + a) (1 + b) - 1 in this order is exactly -1 where a or b is.
        return [pass_on(earlier[0], fade, fade), pass_on(earlier[1], fade[..., None, None], later[1])]

    _, states = jax.lax.associative_scan(combine, elements, axis=1, reverse=reverse)
    return (states[:, 1:], states[:, 0]) if reverse else (states[:, :-1], states[:, -1])
