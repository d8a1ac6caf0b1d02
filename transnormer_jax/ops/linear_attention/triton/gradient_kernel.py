"""The gradients of keys and values in one sweep.

It reads q, k, v and d_out once, where two calls read three of them each. It carries the gradient of the state and its
transpose, both accumulated as such: several versions of Triton compile the transpose of a product wrongly for Hopper.
Two states fit the registers where K and V are at most 64.
"""

import typing

import triton
import triton.language as tl

from transnormer_jax.ops.linear_attention.triton.kernel import chunk_places, decay


@triton.jit
@typing.no_type_check
def sweep_gradients(
    q_ptr,  # [B, N, H, K]
    k_ptr,  # [B, N, H, K]
    v_ptr,  # [B, N, H, V]
    d_out_ptr,  # [B, N, H, V]
    log2_decay_ptr,  # [H] float32, log_decay / log 2
    fade_ptr,  # [H, CHUNK + 2] float32, expm1(log_decay * number of steps), and -1 at the last
    d_state_ptr,  # [B, H, K, V] float32
    position_ptr,  # [B, N] int32; see segments.py
    run_ptr,  # [B, N] int32
    num_tokens,
    num_values,  # V, as a number that the compiler does not know; see kernel.py
    dk_ptr,  # [B, N, H, K]
    dv_ptr,  # [B, N, H, V]
    d_first_state_ptr,  # [B, H, K, V] float32
    HEADS: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    BLOCK_K: tl.constexpr,  # powers of two, at least 16
    BLOCK_V: tl.constexpr,
    CHUNK: tl.constexpr,
    REVERSE: tl.constexpr,  # the way of this sweep: against that of the output
    DOCUMENTS: tl.constexpr,
):
    """One head of one row."""
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
    run_ptr += row * num_tokens

    i = tl.arange(0, CHUNK)
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
        start = step * CHUNK
        if REVERSE:
            start = (num_chunks - 1) * CHUNK - start
        token = start + i
        last = tl.minimum(start + CHUNK, num_tokens) - 1
        real = token < num_tokens
        key_cells = token[:, None] * (HEADS * K) + key[None, :]
        value_cells = token[:, None] * (HEADS * V) + value[None, :]
        key_mask = real[:, None]
        value_mask = real[:, None]
        if BLOCK_K != K:
            key_mask = key_mask & (key < K)[None, :]
        if BLOCK_V != V:
            value_mask = value_mask & (value < V)[None, :]
        q = tl.load(q_ptr + key_cells, mask=key_mask, other=0.0)
        d_out = tl.load(d_out_ptr + value_cells, mask=value_mask, other=0.0)

        place, steps = chunk_places(position_ptr, run_ptr, token, start, last, real, start > 0, CHUNK, DOCUMENTS)
        fade = tl.load(fade_ptr + head * (CHUNK + 2) + tl.minimum(steps, CHUNK + 1))
        from_left = decay(place, log2_decay, CHUNK, DOCUMENTS)
        to_right = decay(steps.to(tl.float32) - place, log2_decay, CHUNK, DOCUMENTS)
        into = to_right if REVERSE else from_left
        onto = from_left if REVERSE else to_right

        entering = d_state.to(q.dtype)
        entering_transposed = d_state_transposed.to(q.dtype)
        d_state += fade * d_state
        d_state = tl.dot(tl.trans(q), (d_out * onto[:, None]).to(q.dtype), d_state)
        d_state_transposed += fade * d_state_transposed
        d_state_transposed = tl.dot(tl.trans(d_out), (q * onto[:, None]).to(q.dtype), d_state_transposed)

        distance = place[None, :] - place[:, None] if REVERSE else place[:, None] - place[None, :]
        weights = decay(distance, log2_decay, CHUNK, DOCUMENTS)
        k = tl.load(k_ptr + key_cells, mask=key_mask, other=0.0)
        scores = (tl.dot(k, tl.trans(q)) * weights).to(q.dtype)
        dv = tl.dot(k, entering) * into[:, None]
        dv = tl.dot(scores, d_out, dv)
        tl.store(dv_ptr + value_cells, dv.to(q.dtype), mask=value_mask)

        v = tl.load(v_ptr + value_cells, mask=value_mask, other=0.0)
        scores = (tl.dot(v, tl.trans(d_out)) * weights).to(q.dtype)
        dk = tl.dot(v, entering_transposed) * into[:, None]
        dk = tl.dot(scores, q, dk)
        tl.store(dk_ptr + key_cells, dk.to(q.dtype), mask=key_mask)

    cell = key[:, None] * num_values + value[None, :]
    cell_mask = (key[:, None] < K) & (value[None, :] < num_values)
    tl.store(d_first_state_ptr + matrix + cell, d_state, mask=cell_mask)
