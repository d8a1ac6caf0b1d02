"""The Triton kernels: a program carries a block of the state from chunk to chunk of tokens, in registers.

What keeps the registers from spilling, found by compiling for compute capability 9.0:

- The state is updated before the output is computed. Its operand, the decayed values, then goes to shared memory early,
  and no tile of values waits in registers for the products of the output.
- Positions, masks and offsets of a chunk depend on the chunk's first token. What does not is hoisted out of the loop,
  and occupies a register per element for as long as the loop runs.
- The number of heads is a constant, so that rows of a tile are at constant distances.
- The last store counts with a V that is not a constant. Else its addresses would be recognised as those of the first
  load, and kept from the one to the other.
"""

import typing

import triton
import triton.language as tl


@triton.jit
@typing.no_type_check
def chunk_tokens(step, num_chunks, length, CHUNK: tl.constexpr, REVERSE: tl.constexpr):
    """The first token of a chunk, all of its tokens, the last one before the end, and which are before the end."""
    start = step * CHUNK
    if REVERSE:
        start = (num_chunks - 1) * CHUNK - start
    token = start + tl.arange(0, CHUNK)
    return start, token, tl.minimum(start + CHUNK, length) - 1, token < length


@triton.jit
@typing.no_type_check
def tile(token, real, feature, HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets and mask of a tile [CHUNK, BLOCK] of an array [N, HEADS, SIZE]."""
    mask = real[:, None]
    if SIZE % BLOCK != 0:
        mask = mask & (feature < SIZE)[None, :]
    return token[:, None] * (HEADS * SIZE) + feature[None, :], mask


@triton.jit
@typing.no_type_check
def chunk_positions(
    position_ptr, index_ptr, token, start, last, real, has_left, CHUNK: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """The steps from the token before a chunk to each of its tokens, and to the last of them.

    float32 [CHUNK], and an integer. Each document is CHUNK + 1 steps further than its tokens are, out of sight of the
    others; tokens beyond the row are far to the left.
    """
    if DOCUMENTS:
        left = tl.load(position_ptr + start - 1, mask=has_left, other=0)
        index_left = tl.load(index_ptr + start - 1, mask=has_left, other=0)
        position = tl.load(position_ptr + token, mask=real, other=0)
        index = tl.load(index_ptr + token, mask=real, other=-1)
        position = (position - left + (index - index_left) * (CHUNK + 1)).to(tl.float32)
        steps = tl.load(position_ptr + last) - left + (tl.load(index_ptr + last) - index_left) * (CHUNK + 1)
    else:
        position = (token + 1).to(tl.float32) - start.to(tl.float32)
        steps = last + 1 - start
    return position, steps


@triton.jit
@typing.no_type_check
def decay(distance, log2_decay, CHUNK: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The weight over a distance: zero to an earlier position, and to another document.

    Tokens at one position are a token and padding, whose q and k are zero.
    """
    linked = distance >= 0
    if DOCUMENTS:
        linked = linked & (distance <= CHUNK)
    return tl.exp2(tl.where(linked, distance * log2_decay, float("-inf")))


@triton.jit
@typing.no_type_check
def border_decay(
    position, steps, chunk_decay_ptr, log2_decay, CHUNK: tl.constexpr, REVERSE: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """q_decay, k_decay and chunk_decay of a chunk; see decay.py."""
    chunk_decay = tl.load(chunk_decay_ptr + tl.minimum(steps, CHUNK + 1))
    from_left = decay(position, log2_decay, CHUNK, DOCUMENTS)
    to_right = decay(steps.to(tl.float32) - position, log2_decay, CHUNK, DOCUMENTS)
    q_decay = to_right if REVERSE else from_left
    k_decay = from_left if REVERSE else to_right
    return q_decay, k_decay, chunk_decay


@triton.jit
@typing.no_type_check
def sweep(
    q_ptr,  # [B, N, H, K]
    k_ptr,  # [B, N, H, K]
    v_ptr,  # [B, N, H, V]
    log2_decay_ptr,  # [H] float32, log_decay / log 2
    chunk_decay_ptr,  # [H, CHUNK + 2] float32, expm1(log_decay * number of steps), and -1 at the last
    state_ptr,  # [B, H, P, K, V] float32, the state before each split
    position_ptr,  # [B, N] int32; see segments.py
    index_ptr,  # [B, N] int32
    num_tokens,
    tokens_per_split,
    num_splits,
    first_split,
    num_values,  # V, as a number that the compiler does not know
    out_ptr,  # [B, N, H, V]
    last_state_ptr,  # [B, H, K, V] float32, or [B, H, P, K, V] without OUTPUT
    HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,  # powers of two, at least 16
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    REVERSE: tl.constexpr,
    DOCUMENTS: tl.constexpr,
    OUTPUT: tl.constexpr,
):
    """One head, one split of a row, one block of values.

    The P splits begin with the `first_split` of the row. With OUTPUT they are all of it. Without, the kernel reads no
    queries and writes no output, and each split returns what it adds to the state.
    """
    VALUE_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    value_block = program % VALUE_BLOCKS
    head = program // VALUE_BLOCKS % HEADS
    split = program // (VALUE_BLOCKS * HEADS) % num_splits
    row = (program // (VALUE_BLOCKS * HEADS) // num_splits).to(tl.int64)

    begin = (first_split + split) * tokens_per_split
    length = tl.minimum(tokens_per_split, num_tokens - begin)
    first = row * num_tokens + begin
    q_ptr += (first * HEADS + head) * K
    k_ptr += (first * HEADS + head) * K
    v_ptr += (first * HEADS + head) * V
    out_ptr += (first * HEADS + head) * V
    position_ptr += first
    index_ptr += first

    key = tl.arange(0, BLOCK_K)
    value = value_block * BLOCK_V + tl.arange(0, BLOCK_V)
    log2_decay = tl.load(log2_decay_ptr + head)

    matrix = (row * HEADS + head) * num_splits + split
    cell = key[:, None] * V + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < V)
    if OUTPUT:
        state = tl.load(state_ptr + matrix * K * V + cell, mask=cell_mask, other=0.0)
    else:
        state = tl.full((BLOCK_K, BLOCK_V), 0.0, tl.float32)

    num_chunks = (length + CHUNK - 1) // CHUNK
    for step in range(num_chunks):
        start, token, last, real = chunk_tokens(step, num_chunks, length, CHUNK, REVERSE)
        key_cells, key_mask = tile(token, real, key, HEADS, K, BLOCK_K)
        value_cells, value_mask = tile(token, real, value, HEADS, V, BLOCK_V)
        k = tl.load(k_ptr + key_cells, mask=key_mask, other=0.0)
        v = tl.load(v_ptr + value_cells, mask=value_mask, other=0.0)

        position, steps = chunk_positions(
            position_ptr, index_ptr, token, start, last, real, begin + start > 0, CHUNK, DOCUMENTS
        )
        q_decay, k_decay, chunk_decay = border_decay(
            position, steps, chunk_decay_ptr + head * (CHUNK + 2), log2_decay, CHUNK, REVERSE, DOCUMENTS
        )
        before = state.to(v.dtype)
        decayed = (v * k_decay[:, None]).to(v.dtype)
        state += chunk_decay * state
        state = tl.dot(tl.trans(k), decayed, state, input_precision="ieee")

        if OUTPUT:
            q = tl.load(q_ptr + key_cells, mask=key_mask, other=0.0)
            distance = position[None, :] - position[:, None] if REVERSE else position[:, None] - position[None, :]
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            scores *= decay(distance, log2_decay, CHUNK, DOCUMENTS)
            out = tl.dot(q, before, input_precision="ieee") * q_decay[:, None]
            out = tl.dot(scores.to(v.dtype), v, out, input_precision="ieee")
            tl.store(out_ptr + value_cells, out.to(v.dtype), mask=value_mask)

    cell = key[:, None] * num_values + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < num_values)
    if not OUTPUT:
        tl.store(last_state_ptr + matrix * K * V + cell, state, mask=cell_mask)
    elif split == (0 if REVERSE else num_splits - 1):
        tl.store(last_state_ptr + (row * HEADS + head) * K * V + cell, state, mask=cell_mask)


@triton.jit
@typing.no_type_check
def sweep_gradients(
    q_ptr,  # [B, N, H, K]
    k_ptr,  # [B, N, H, K]
    v_ptr,  # [B, N, H, V]
    d_out_ptr,  # [B, N, H, V]
    log2_decay_ptr,  # [H] float32, log_decay / log 2
    chunk_decay_ptr,  # [H, CHUNK + 2] float32, expm1(log_decay * number of steps), and -1 at the last
    d_state_ptr,  # [B, H, K, V] float32
    position_ptr,  # [B, N] int32; see segments.py
    index_ptr,  # [B, N] int32
    num_tokens,
    num_values,  # V, as a number that the compiler does not know
    dk_ptr,  # [B, N, H, K]
    dv_ptr,  # [B, N, H, V]
    d_first_state_ptr,  # [B, H, K, V] float32
    HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,  # powers of two, at least 16, and at least K and V
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    DOCUMENTS: tl.constexpr,
):
    """The gradients of keys and values of one head of one row, in one sweep from its end.

    It reads q, k, v and d_out once, where two calls of `sweep` read three of them each. It carries the gradient of the
    state and its transpose, both accumulated as such: several versions of Triton compile the transpose of a product
    wrongly for Hopper. Two states fit the registers where K and V are at most 64.
    """
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS).to(tl.int64)
    first = row * num_tokens * HEADS + head
    q_ptr += first * K
    k_ptr += first * K
    v_ptr += first * V
    d_out_ptr += first * V
    dk_ptr += first * K
    dv_ptr += first * V
    position_ptr += row * num_tokens
    index_ptr += row * num_tokens

    key = tl.arange(0, BLOCK_K)
    value = tl.arange(0, BLOCK_V)
    log2_decay = tl.load(log2_decay_ptr + head)

    matrix = (row * HEADS + head) * K * V
    d_state = tl.load(
        d_state_ptr + matrix + key[:, None] * V + value[None, :],
        mask=(key[:, None] < K) & (value[None, :] < V),
        other=0.0,
    )
    d_state_transposed = tl.load(
        d_state_ptr + matrix + value[:, None] + key[None, :] * V,
        mask=(value[:, None] < V) & (key[None, :] < K),
        other=0.0,
    )

    num_chunks = (num_tokens + CHUNK - 1) // CHUNK
    for step in range(num_chunks):
        start, token, last, real = chunk_tokens(step, num_chunks, num_tokens, CHUNK, True)
        key_cells, key_mask = tile(token, real, key, HEADS, K, BLOCK_K)
        value_cells, value_mask = tile(token, real, value, HEADS, V, BLOCK_V)
        q = tl.load(q_ptr + key_cells, mask=key_mask, other=0.0)
        d_out = tl.load(d_out_ptr + value_cells, mask=value_mask, other=0.0)

        position, steps = chunk_positions(
            position_ptr, index_ptr, token, start, last, real, start > 0, CHUNK, DOCUMENTS
        )
        q_decay, k_decay, chunk_decay = border_decay(
            position, steps, chunk_decay_ptr + head * (CHUNK + 2), log2_decay, CHUNK, True, DOCUMENTS
        )
        after = d_state.to(q.dtype)
        after_transposed = d_state_transposed.to(q.dtype)
        d_state += chunk_decay * d_state
        d_state = tl.dot(tl.trans(q), (d_out * k_decay[:, None]).to(q.dtype), d_state)
        d_state_transposed += chunk_decay * d_state_transposed
        d_state_transposed = tl.dot(tl.trans(d_out), (q * k_decay[:, None]).to(q.dtype), d_state_transposed)

        weights = decay(position[None, :] - position[:, None], log2_decay, CHUNK, DOCUMENTS)
        k = tl.load(k_ptr + key_cells, mask=key_mask, other=0.0)
        scores = (tl.dot(k, tl.trans(q)) * weights).to(q.dtype)
        dv = tl.dot(k, after) * q_decay[:, None]
        dv = tl.dot(scores, d_out, dv)
        tl.store(dv_ptr + value_cells, dv.to(q.dtype), mask=value_mask)

        v = tl.load(v_ptr + value_cells, mask=value_mask, other=0.0)
        scores = (tl.dot(v, tl.trans(d_out)) * weights).to(q.dtype)
        dk = tl.dot(v, after_transposed) * q_decay[:, None]
        dk = tl.dot(scores, q, dk)
        tl.store(dk_ptr + key_cells, dk.to(q.dtype), mask=key_mask)

    cell = key[:, None] * num_values + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < num_values)
    tl.store(d_first_state_ptr + matrix + cell, d_state, mask=cell_mask)
