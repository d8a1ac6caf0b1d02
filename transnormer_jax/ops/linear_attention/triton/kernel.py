"""The Triton kernel: one program carries a K x V block of the state from chunk to chunk of tokens, in registers.

What keeps the registers from spilling, found by compiling for compute capability 9.0:

- The state is updated before the output is computed. Its operand, the decayed values, then goes to shared memory early,
  and no tile of values waits in registers for the products of the output.
- Places, masks and offsets of a chunk depend on the chunk's first token. What does not is hoisted out of the loop, and
  occupies a register per element for as long as the loop runs.
- The number of heads is a constant, so that rows of a tile lie at constant distances.
- The last store counts with a V that is not a constant. Else its addresses would be recognised as those of the first
  load, and kept from the one to the other.
"""

import typing

import triton
import triton.language as tl


@triton.jit
@typing.no_type_check
def chunk_places(
    position_ptr, run_ptr, token, start, last, real, has_left, CHUNK: tl.constexpr, DOCUMENTS: tl.constexpr
):
    """Where the tokens of a chunk stand, in steps from the place before it, and where the last one does.

    float32 [CHUNK], and an integer. Each document lies CHUNK + 1 steps further than its tokens do, out of sight of the
    others; tokens beyond the row lie far to the left.
    """
    if DOCUMENTS:
        left = tl.load(position_ptr + start - 1, mask=has_left, other=0)
        run_left = tl.load(run_ptr + start - 1, mask=has_left, other=0)
        position = tl.load(position_ptr + token, mask=real, other=0)
        run = tl.load(run_ptr + token, mask=real, other=-1)
        place = (position - left + (run - run_left) * (CHUNK + 1)).to(tl.float32)
        steps = tl.load(position_ptr + last) - left + (tl.load(run_ptr + last) - run_left) * (CHUNK + 1)
    else:
        place = (token + 1).to(tl.float32) - start.to(tl.float32)
        steps = last + 1 - start
    return place, steps


@triton.jit
@typing.no_type_check
def decay(distance, log2_decay, CHUNK: tl.constexpr, DOCUMENTS: tl.constexpr):
    """The weight over a distance: zero to an earlier place, and to another document.

    Tokens at one place are a token and padding, whose q and k are zero.
    """
    linked = distance >= 0
    if DOCUMENTS:
        linked = linked & (distance <= CHUNK)
    return tl.exp2(tl.where(linked, distance * log2_decay, float("-inf")))


@triton.jit
@typing.no_type_check
def sweep(
    q_ptr,  # [B, N, H, K]
    k_ptr,  # [B, N, H, K]
    v_ptr,  # [B, N, H, V]
    log2_decay_ptr,  # [H] float32, log_decay / log 2
    fade_ptr,  # [H, CHUNK + 2] float32, expm1(log_decay * number of steps), and -1 at the last
    state_ptr,  # [B, H, P, K, V] float32, the state that enters each part of the row
    position_ptr,  # [B, N] int32; see segments.py
    run_ptr,  # [B, N] int32
    num_tokens,
    tokens_per_part,
    num_parts,
    first_part,
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
    """One head, one part of a row, one block of values; see decay.py for the formulas.

    The P parts begin with the `first_part` of the row. With OUTPUT they are all of it. Without, the kernel reads no
    queries and writes no output, and each part returns what it writes to an empty state.
    """
    VALUE_BLOCKS: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    value_block = program % VALUE_BLOCKS
    head = program // VALUE_BLOCKS % HEADS
    part = program // (VALUE_BLOCKS * HEADS) % num_parts
    row = (program // (VALUE_BLOCKS * HEADS) // num_parts).to(tl.int64)

    begin = (first_part + part) * tokens_per_part
    length = tl.minimum(tokens_per_part, num_tokens - begin)
    first = row * num_tokens + begin
    q_ptr += (first * HEADS + head) * K
    k_ptr += (first * HEADS + head) * K
    v_ptr += (first * HEADS + head) * V
    out_ptr += (first * HEADS + head) * V
    position_ptr += first
    run_ptr += first

    i = tl.arange(0, CHUNK)
    key = tl.arange(0, BLOCK_K)
    value = value_block * BLOCK_V + tl.arange(0, BLOCK_V)
    log2_decay = tl.load(log2_decay_ptr + head)

    matrix = (row * HEADS + head) * num_parts + part
    cell = key[:, None] * V + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < V)
    if OUTPUT:
        state = tl.load(state_ptr + matrix * K * V + cell, mask=cell_mask, other=0.0)
    else:
        state = tl.full((BLOCK_K, BLOCK_V), 0.0, tl.float32)

    num_chunks = (length + CHUNK - 1) // CHUNK
    for step in range(num_chunks):
        start = step * CHUNK
        if REVERSE:
            start = (num_chunks - 1) * CHUNK - start
        token = start + i
        last = tl.minimum(start + CHUNK, length) - 1
        real = token < length
        key_cells = token[:, None] * (HEADS * K) + key[None, :]
        value_cells = token[:, None] * (HEADS * V) + value[None, :]
        key_mask = real[:, None]
        value_mask = real[:, None]
        if BLOCK_K != K:
            key_mask = key_mask & (key < K)[None, :]
        if V % BLOCK_V != 0:
            value_mask = value_mask & (value < V)[None, :]
        k = tl.load(k_ptr + key_cells, mask=key_mask, other=0.0)
        v = tl.load(v_ptr + value_cells, mask=value_mask, other=0.0)

        place, steps = chunk_places(
            position_ptr, run_ptr, token, start, last, real, begin + start > 0, CHUNK, DOCUMENTS
        )
        fade = tl.load(fade_ptr + head * (CHUNK + 2) + tl.minimum(steps, CHUNK + 1))
        from_left = decay(place, log2_decay, CHUNK, DOCUMENTS)
        to_right = decay(steps.to(tl.float32) - place, log2_decay, CHUNK, DOCUMENTS)
        into = to_right if REVERSE else from_left
        onto = from_left if REVERSE else to_right

        entering = state.to(v.dtype)
        decayed = (v * onto[:, None]).to(v.dtype)
        state += fade * state
        state = tl.dot(tl.trans(k), decayed, state, input_precision="ieee")

        if OUTPUT:
            q = tl.load(q_ptr + key_cells, mask=key_mask, other=0.0)
            distance = place[None, :] - place[:, None] if REVERSE else place[:, None] - place[None, :]
            scores = tl.dot(q, tl.trans(k), input_precision="ieee")
            scores *= decay(distance, log2_decay, CHUNK, DOCUMENTS)
            out = tl.dot(q, entering, input_precision="ieee") * into[:, None]
            out = tl.dot(scores.to(v.dtype), v, out, input_precision="ieee")
            tl.store(out_ptr + value_cells, out.to(v.dtype), mask=value_mask)

    cell = key[:, None] * num_values + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < num_values)
    if not OUTPUT:
        tl.store(last_state_ptr + matrix * K * V + cell, state, mask=cell_mask)
    elif part == (0 if REVERSE else num_parts - 1):
        tl.store(last_state_ptr + (row * HEADS + head) * K * V + cell, state, mask=cell_mask)
