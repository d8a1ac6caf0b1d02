"""DiagAttention: attention within blocks of tokens that do not overlap, O(N * block_size) in time and memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from transnormer_jax.errors import UserError, did_you_mean
from transnormer_jax.ops.blocks import join_blocks, split_blocks
from transnormer_jax.ops.linear_attention import token_positions
from transnormer_jax.ops.linear_attention.segments import find_segments
from transnormer_jax.ops.precision import wide_type

_WEIGHTS = ("softmax", "relu")


class DiagonalState(NamedTuple):
    """The last tokens of the newest document, as many as a block has, the newest last; 0 before the first token.

    Attributes:
      ordinal: int32, 1 for the first token of its document; 0 where there is no token.
    """

    k: Float[Array, "B W H K"]
    v: Float[Array, "B W H V"]
    ordinal: Int[Array, "B W"]


def diagonal_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    *,
    block_size: int,
    weights: str,
    causal: bool,
    segment_ids: Int[Array, "B N"] | None = None,
    count_padding: bool = False,
) -> Float[Array, "B N H V"]:
    """Attention among the tokens of each block (TransNormer, arXiv 2210.10340, section 4.2).

    A document is cut into blocks from its own first token. In a packed row these blocks may start anywhere, so the
    tokens of a window see the window before (and after, if not causal) and a mask picks the block: two or three times
    the work.

    Args:
      block_size: W, tokens of a block; the last block of a document may have fewer.
      weights: "softmax" of q . k / sqrt(K) (T2), or their "relu", not normalised (T1).
      causal: whether no token attends to a later one.
      segment_ids: [B, N] int32, documents of packed rows; 0 is padding, which no token sees. Padding stands before,
        between or after documents, not inside one.
      count_padding: as the authors' code has it: the last block is filled up with keys that are 0, whose score 0 counts
        in the softmax where causal is False. For parity with weights that were trained so.

    Returns:
      [B, N, H, V] in v's dtype, 0 where a token sees none. Scores and sums are float32 at least.

    Raises:
      UserError: `weights` is unknown, block_size < 1, or count_padding is asked for with segment_ids.
    """
    if weights not in _WEIGHTS:
        raise UserError(f"unknown weights {weights!r}: {did_you_mean(weights, _WEIGHTS)}")
    if block_size < 1:
        raise UserError(f"block_size is {block_size}: give a positive number of tokens.")
    if segment_ids is not None and count_padding:
        raise UserError(
            "count_padding=True cannot be used with segment_ids, for documents or padding: leave segment_ids out."
        )
    num_tokens = q.shape[1]
    if segment_ids is None:
        size = block_size if count_padding else min(block_size, max(num_tokens, 1))
        q, k, v = (split_blocks(x, size) for x in (q, k, v))
        index = jnp.arange(q.shape[1] * size).reshape(1, -1, size)
        allowed = index[..., :, None] >= index[..., None, :] if causal else jnp.ones((1, 1, size, size), bool)
        if not count_padding:
            allowed &= index[..., None, :] < num_tokens
        return join_blocks(_attend(q, k, v, allowed, weights), num_tokens)

    real = segment_ids != 0
    k, v = (jnp.where(real[..., None, None], x, 0) for x in (k, v))
    place = token_positions(segment_ids, jnp.zeros(q.shape[0], jnp.int32))
    block = jnp.where(real, jnp.cumsum(real & (place % block_size == 0), axis=1), -1)
    size = min(block_size, max(num_tokens, 1))
    margins = (size, 0) if causal else (size, size)
    k, v = (jnp.pad(x, ((0, 0), margins, (0, 0), (0, 0))) for x in (k, v))
    key_block = jnp.pad(block, ((0, 0), margins), constant_values=-1)
    return _attend_windows(q, k, v, block, key_block, size, weights, causal)


def resume_diagonal_attention(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B N H K"],
    v: Float[Array, "B N H V"],
    state: DiagonalState,
    position: Int[Array, "#B N"],
    segment_ids: Int[Array, "B N"] | None = None,
    *,
    weights: str,
) -> tuple[Float[Array, "B N H V"], DiagonalState]:
    """Causal diagonal attention of N new tokens that go on from `state` (arXiv 2210.10340, section 4.2).

    The block size is the number of tokens in `state`.

    Args:
      state: after the tokens before; rows may differ in their number.
      position: int32, of the new tokens in their documents. The block of a token is position // block_size.
      segment_ids: int32, documents of packed rows, of which the first goes on from `state`; 0 is padding, which stands
        between or after documents.

      weights: "softmax" or "relu".

    Returns:
      The output in v's dtype, and the state after the new tokens.
    """
    if q.shape[1] == 0:
        return v, state
    block_size = state.k.shape[1]
    k = jnp.concatenate([state.k, k.astype(state.k.dtype)], axis=1)
    v = jnp.concatenate([state.v, v.astype(state.v.dtype)], axis=1)
    position = jnp.broadcast_to(position, q.shape[:2])
    real, document = jnp.ones_like(position, bool), jnp.zeros_like(position)
    if segment_ids is not None:
        real, document = segment_ids != 0, find_segments(segment_ids).segment_index
    # The block that the state ends in is number 0; the new tokens that begin a block count the following ones.
    block = jnp.where(real, jnp.cumsum(real & (position % block_size == 0), axis=1), -1)
    block_of = (state.ordinal - 1) // block_size
    in_newest = (state.ordinal > 0) & (block_of == block_of[:, -1:])
    blocks = jnp.concatenate([jnp.where(in_newest, 0, -1), block], axis=1)
    out = _attend_windows(q, k, v, block, blocks, min(block_size, q.shape[1]), weights, causal=True)

    ordinal = jnp.concatenate([state.ordinal, position + 1], axis=1)
    if segment_ids is not None:  # the tokens to keep go to the end, in their order
        last = document[:, -1:]
        keep = jnp.concatenate([(state.ordinal > 0) & (last == 0), real & (document == last)], axis=1)
        order = jnp.argsort(keep, axis=1, stable=True)[:, -block_size:]
        k, v = (jnp.take_along_axis(x, order[..., None, None], axis=1) for x in (k, v))
        ordinal = jnp.take_along_axis(jnp.where(keep, ordinal, 0), order, axis=1)
    return out, DiagonalState(k[:, -block_size:], v[:, -block_size:], ordinal[:, -block_size:])


def _attend_windows(
    q: Float[Array, "B N H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    query_block: Int[Array, "B N"],
    key_block: Int[Array, "B S"],
    size: int,
    weights: str,
    causal: bool,
) -> Float[Array, "B N H V"]:
    """Tokens see those of the same block, if it is not negative. Keys begin before the queries, and may end after them.

    Rows are cut into windows of `size` queries, which meet the keys of the windows beside them. The margins of the keys
    are `size` long, or of any length where there is only one window.
    """
    num_tokens, num_windows = q.shape[1], -(-q.shape[1] // size)
    filling = num_windows * size - num_tokens
    before = size if num_windows > 1 or not causal else k.shape[1] - num_tokens
    # The filling stands at the end of queries and keys alike; it belongs to no block.
    q, k, v = (jnp.pad(x, ((0, 0), (0, filling), (0, 0), (0, 0))) for x in (q, k, v))
    query_block, key_block = (jnp.pad(x, ((0, 0), (0, filling)), constant_values=-1) for x in (query_block, key_block))

    def windows(x: Array) -> Array:
        if num_windows == 1:
            return x[:, None]
        x = split_blocks(x, size)
        beside = x.shape[1] - num_windows + 1
        return jnp.concatenate([x[:, i : i + num_windows] for i in range(beside)], axis=2)

    query_block = query_block.reshape(q.shape[0], num_windows, size, 1)
    allowed = (query_block == windows(key_block)[:, :, None]) & (query_block >= 0)
    if causal:
        allowed &= jnp.tri(size, allowed.shape[-1], before, dtype=bool)[None, None]
    return join_blocks(_attend(split_blocks(q, size), windows(k), windows(v), allowed, weights), num_tokens)


def _attend(
    q: Float[Array, "B M C H K"],
    k: Float[Array, "B M S H K"],
    v: Float[Array, "B M S H V"],
    allowed: Bool[Array, "#B #M C S"],
    weights: str,
) -> Float[Array, "B M C H V"]:
    wide = wide_type(q)
    scores = jnp.einsum("bmchk,bmshk->bmhcs", q, k, preferred_element_type=wide) * q.shape[-1] ** -0.5
    allowed = allowed[:, :, None]
    if weights == "softmax":
        scores = jax.nn.softmax(jnp.where(allowed, scores, jnp.finfo(wide).min), axis=-1)
    else:
        scores = jax.nn.relu(scores)
    scores = jnp.where(allowed, scores, 0).astype(v.dtype)
    return jnp.einsum("bmhcs,bmshv->bmchv", scores, v, preferred_element_type=wide).astype(v.dtype)
