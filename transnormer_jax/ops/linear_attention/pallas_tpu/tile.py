"""Arithmetic on the tiles of a chunk: products with float32 results, and heads that share lanes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout


class KeyBlock(NamedTuple):
    """Heads of a group whose keys go through the matrix unit together.

    Attributes:
      lanes: of their keys in the block of heads.
      heads: their numbers in the block of heads.
    """

    lanes: slice
    heads: range


class Group(NamedTuple):
    """Heads whose values share the lanes of a register.

    Attributes:
      lanes: of their values in the block of heads; the state has the same ones.
      heads: their numbers in the block of heads.
      keys: the same heads by key blocks.
    """

    lanes: slice
    heads: range
    keys: list[KeyBlock]


def head_groups(layout: Layout) -> list[Group]:
    """The groups of a block of heads."""
    groups = []
    for first in range(0, layout.heads, layout.group):
        heads = range(first, first + layout.group)
        together = [heads] if layout.keys_share_lanes else [range(head, head + 1) for head in heads]
        keys = [KeyBlock(_lanes(heads, layout.problem.key_dim), heads) for heads in together]
        groups.append(Group(_lanes(heads, layout.problem.value_dim), heads, keys))
    return groups


def _lanes(heads: range, size: int) -> slice:
    return slice(heads.start * size, heads.stop * size)


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """The product of two matrices over one axis of each, in float32; float32 operands are never rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def outer(keys: Sequence[Array], values: Array, group: Group) -> Array:
    """keys^T values, head by head: the tiles [C, lanes] of the key blocks and of the group's values give [K, lanes]."""
    parts = list[Array]()
    for tile, block in zip(keys, group.keys, strict=True):
        parts += jnp.split(dot(tile, values, (0, 0)), len(block.heads))
    return join(parts)


def stack(state: Array, block: KeyBlock, group: Group, dtype: jnp.dtype) -> Array:
    """The state [K, lanes] as an operand [keys of the block, lanes], zero between different heads."""
    return jnp.concatenate([only(state, head, group.heads) for head in block.heads]).astype(dtype)


def only(x: Array, head: int, heads: range) -> Array:
    """Puts zeros in the lanes of all heads but one of those that share x [rows, lanes]."""
    return x if len(heads) == 1 else jnp.where(_lanes_of(head - heads.start, len(heads), x.shape), x, jnp.zeros_like(x))


def join(parts: Sequence[Array]) -> Array:
    """Takes from each part [rows, lanes] the lanes of its own head."""
    joined = parts[0]
    for index in range(1, len(parts)):
        joined = jnp.where(_lanes_of(index, len(parts), joined.shape), parts[index], joined)
    return joined


def _lanes_of(index: int, count: int, shape: tuple[int, ...]) -> Array:
    size = shape[1] // count
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= index * size) & (lane < (index + 1) * size)
