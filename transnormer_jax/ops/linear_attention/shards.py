"""The operator on a mesh: each device has its own rows, its own heads, and its own part of every row.

XLA divides its own operations among devices, but not a kernel, and it has no parallel form for a recurrence. So where
a mesh is set, kernels, and everything where rows are in parts, run under `jax.shard_map`: rows, tokens and heads are
divided by `distributed.RULES` as far as their numbers divide; over any other axis every device does the same work.
Rows and heads need no communication; `context.py` says what parts of a row do.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec as P

from transnormer_jax.distributed import RULES, auto_axes, that_divide


class Specs(NamedTuple):
    """How the arrays of a call lie on the mesh.

    Attributes:
      tokens: [B, N, H, K].
      heads: [H].
      state: [B, H, K, V].
      places: [B, N].
      saved: [B, blocks, K, H * V].
    """

    tokens: P
    heads: P
    state: P
    places: P
    saved: P


def specs(batch: int, num_tokens: int, num_heads: int) -> Specs:
    """The specs of B rows of N tokens and H heads on the mesh at hand.

    They name axes of size 1 as well: over an axis that a spec leaves out, a gradient is summed.
    """
    axes = auto_axes()
    rows = that_divide(batch, RULES.batch, axes) or None
    heads = that_divide(num_heads, RULES.heads, axes) or None
    part = part_axis(num_tokens)
    return Specs(P(rows, part, heads), P(heads), P(rows, heads), P(rows, part), P(rows, part, None, heads))


def part_axis(num_tokens: int) -> str | None:
    """The mesh axis over which rows of N tokens lie in parts, or None where each device holds whole rows."""
    sizes = auto_axes()
    axes = [axis for axis in that_divide(num_tokens, RULES.sequence, sizes) if sizes[axis] > 1]
    return axes[0] if axes else None


def per_device(function: Callable[..., Any], in_specs: Sequence[P], out_specs: Any) -> Callable[..., Any]:
    """The function on each device's shards; the function itself where no mesh of several devices is set."""
    axes = auto_axes()
    if math.prod(axes.values()) == 1:
        return function
    return jax.shard_map(function, in_specs=tuple(in_specs), out_specs=out_specs, axis_names=set(axes), check_vma=False)
