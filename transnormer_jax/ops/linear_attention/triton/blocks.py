"""Which blocks a Triton program works on: a fixed table, no tuning at run time.

With K and V of 64 and 128 no entry spills registers, in either direction of time, with and without documents
(`tests/ops/test_triton.py` compiles them). Compute capabilities are times ten: 80 is an A100, 90 an H100.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Blocks(NamedTuple):
    """What one program works on."""

    chunk: int  # tokens
    key: int  # features, all of them: K rounded up to a power of two
    value: int  # features
    num_warps: int
    num_stages: int  # chunks in flight from memory, and one


def choose_blocks(key_dim: int, value_dim: int, dtype: Any, compute_capability: int) -> Blocks:
    """The blocks for heads of K and V features, K up to 256."""
    key = _power_of_two(key_dim)
    if dtype == jnp.float32:  # without tensor cores: each product is unrolled into multiply-adds
        chunk, value, num_warps, num_stages = (16, 16, 4, 1) if key <= 64 else (16, 16, 8, 1)
    elif 90 <= compute_capability < 120 and key <= 128:
        chunk, value, num_warps, num_stages = (64, 64, 4, 3) if key <= 64 else (64, 64, 4, 2)
    elif key <= 64:  # operands wait in registers, and not in shared memory
        chunk, value, num_warps, num_stages = (32, 64, 4, 2)
    else:
        chunk, value, num_warps, num_stages = (32, 64, 8, 2)
    return Blocks(chunk, key, min(value, _power_of_two(value_dim)), num_warps, num_stages)


def choose_gradient_blocks(key_dim: int, value_dim: int, dtype: Any, compute_capability: int) -> Blocks | None:
    """As `choose_blocks`, for `sweep_gradients`; None where it would spill registers."""
    key, value = _power_of_two(key_dim), _power_of_two(value_dim)
    if dtype == jnp.float32 or max(key, value) > 64:
        return None
    chunk, num_warps, num_stages = (64, 4, 3) if 90 <= compute_capability < 120 else (32, 8, 2)
    return Blocks(chunk, key, value, num_warps, num_stages)


def _power_of_two(features: int) -> int:
    """The least power of two that a tensor core's operand can have as its size, and that holds the features."""
    return max(16, 1 << (features - 1).bit_length())
