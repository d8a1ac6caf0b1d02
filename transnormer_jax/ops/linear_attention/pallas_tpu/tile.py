"""Arithmetic on the tiles of a chunk: products, and heads that share lanes."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import LANES, Layout
from transnormer_jax.ops.precision import dot


class KeyTile(NamedTuple):
    """Keys that go through the matrix unit together: those of all heads of a group, or of one head."""

    lanes: slice  # in the block of heads
    heads: range  # that read them, by their numbers in the block


class Group(NamedTuple):
    """Heads whose values share the lanes of a register."""

    lanes: slice  # of their values in the block of heads, and of their state
    heads: range
    keys: list[KeyTile]


def head_groups(layout: Layout) -> list[Group]:
    """The groups of a block of heads."""
    size, groups = layout.problem.key_dim, list[Group]()
    for first in range(0, layout.heads, layout.group):
        heads = range(first, first + layout.group)
        if layout.group > 1 and size % LANES:
            keys = [KeyTile(_lanes(first, layout.group, size), heads)]
        else:
            keys = [KeyTile(_lanes(h // layout.problem.heads_per_key, 1, size), range(h, h + 1)) for h in heads]
        groups.append(Group(_lanes(first, layout.group, layout.problem.value_dim), heads, keys))
    return groups


def _lanes(first: int, count: int, size: int) -> slice:
    return slice(first * size, (first + count) * size)


def key_scores(
    groups: Sequence[Group], left: Sequence[Sequence[Array]], right: Sequence[Sequence[Array]]
) -> list[Array]:
    """Left right^T of the key tiles of each group, once for each key head; the heads side by side: [C, heads * C]."""
    done = dict[slice, Array]()
    for group, xs, ys in zip(groups, left, right, strict=True):
        for tile, x, y in zip(group.keys, xs, ys, strict=True):
            if tile.lanes not in done:
                done[tile.lanes] = dot("ck,sk->cs", x, stack(y, tile.heads))
    return [jnp.concatenate([done[tile.lanes] for tile in group.keys], axis=1) for group in groups]


def outer(keys: Sequence[Array], values: Array, group: Group) -> Array:
    """keys^T values, head by head: [C, lanes] of the key tiles and of the group's values give [K, lanes]."""
    parts = list[Array]()
    for x, tile in zip(keys, group.keys, strict=True):
        parts += jnp.split(dot("ck,cv->kv", x, values), len(tile.heads))
    return join(parts)


def read_state(queries: Sequence[Array], state: Array, group: Group, dtype: jnp.dtype) -> Array:
    """Outputs q S, head by head: [C, lanes] of the tiles of queries and the state [K, lanes] give [C, lanes]."""
    parts = [
        dot("ck,kv->cv", q, stack_state(state, tile, group, dtype)) for q, tile in zip(queries, group.keys, strict=True)
    ]
    return sum(parts[1:], parts[0])


def stack(x: Array, heads: range) -> Array:
    """One tile [C, lanes] per head, zero in the lanes of the other heads, one below the other: [heads * C, lanes]."""
    return jnp.concatenate([only(x, head, heads) for head in heads])


def stack_state(state: Array, tile: KeyTile, group: Group, dtype: jnp.dtype) -> Array:
    """The state [K, lanes] as an operand [keys of the tile, lanes], zero between different heads."""
    return jnp.concatenate([only(state, head, group.heads) for head in tile.heads]).astype(dtype)


def only(x: Array, head: int, heads: range) -> Array:
    """Puts zeros in the lanes of all heads but one of those that share x [rows, lanes]."""
    return x if len(heads) == 1 else jnp.where(_lanes_of(head - heads.start, len(heads), x.shape), x, jnp.zeros_like(x))


def join(parts: Sequence[Array]) -> Array:
    """Takes from each part [rows, lanes] the lanes of its own head."""
    joined = parts[0]
    for index in range(1, len(parts)):
        joined = jnp.where(_lanes_of(index, len(parts), joined.shape), parts[index], joined)
    return joined


def head_sums(x: Array, count: int) -> list[Array]:
    """The sums [rows, 1] over the lanes of each head that shares x [rows, lanes]."""
    heads = range(count)
    return [jnp.sum(only(x, head, heads), axis=1, keepdims=True) for head in heads]


def _lanes_of(index: int, count: int, shape: tuple[int, ...]) -> Array:
    size = shape[1] // count
    lane = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return (lane >= index * size) & (lane < (index + 1) * size)
