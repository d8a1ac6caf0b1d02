"""Checksums of arrays, independent of their sharding, which detect bytes that change on disk.

The checksum of an array is sum_i (2 i + 1) bits_i mod 2^32 over its elements in order. Every weight is odd, so a change
of one element always changes the sum, and a change of many does but for a chance of 2^-32. Sums of integers are exact
in any order, so any mesh gives the same number.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_CHUNK = 2**22


class CorruptError(ValueError):
    """An array is not what was saved."""


def checksums(tree: Any) -> list[str]:
    """The dtype and the checksum of every leaf, as in "float32:123456", in the order of `jax.tree.leaves`.

    The leaves are arrays of JAX, whose checksums are computed where they are, or of NumPy.
    """
    leaves = jax.tree.leaves(tree)
    on_host = all(isinstance(x, np.ndarray) for x in leaves)
    sums = [_on_host(x) for x in leaves] if on_host else jax.device_get(_on_devices(leaves))
    return [f"{x.dtype}:{int(one)}" for x, one in zip(leaves, sums, strict=True)]


def verify(tree: Any, expected: Sequence[str] | None) -> None:
    """Compares arrays that were read with what was saved; those that were read as another dtype are not compared.

    Args:
      expected: `checksums` of the tree that was saved; None, of an older checkpoint, says nothing.

    Raises:
      CorruptError: one of them differs; the message names it.
    """
    if expected is None:
        return
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]]
    for path, found, saved in zip(paths, checksums(tree), expected, strict=True):
        if found != saved and found.partition(":")[0] == saved.partition(":")[0]:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise CorruptError(f"the bytes of array {name!r} have changed since it was saved")


@jax.jit
def _on_devices(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    return [_weighted_sum(x) for x in leaves]


def _weighted_sum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _UNSIGNED[x.dtype.itemsize]).astype(jnp.uint32)
    weights, stride = jnp.ones(bits.shape, jnp.uint32), 2
    for axis in reversed(range(bits.ndim)):
        # The number of an element, without a reshape, which would gather a sharded array.
        weights += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        stride *= bits.shape[axis]
    return jnp.sum(bits * weights, dtype=jnp.uint32)


def _on_host(x: np.ndarray) -> int:
    bits = np.ascontiguousarray(x).reshape(-1).view(_UNSIGNED[x.dtype.itemsize])
    total = 0
    for start in range(0, len(bits), _CHUNK):
        chunk = bits[start : start + _CHUNK].astype(np.uint32)
        weights = (2 * np.arange(start, start + len(chunk), dtype=np.uint64) + 1).astype(np.uint32)
        total += int(np.sum(chunk * weights, dtype=np.uint32))
    return total % 2**32
