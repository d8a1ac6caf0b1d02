"""How a call is cut to fit a Hopper GPU: heads and value columns of a block, stages in flight, parts of a row."""

from collections.abc import Sequence
from typing import NamedTuple

CHUNK = 64  # tokens: the height of a wgmma tile
COLUMNS = 64  # value columns of a compute warpgroup: 64 float32 registers per thread hold a state of K = 128
_MULTIPROCESSORS = 132  # of an H100 SXM and of an H200
_MIN_CHUNKS_PER_PART = 8  # a shorter part would not repay the second kernel
_SHARED_MEMORY = 227 * 1024 - 1024  # bytes a block may use at compute capability 9.0, less what barriers take
_MAX_STAGES = 4


class Plan(NamedTuple):
    """The static shape of a launch.

    Attributes:
      num_tokens: length of a row. The arrays may be longer, and hold zeros there.
      warpgroups: compute warpgroups of a block; each keeps the state of one head and `COLUMNS` value columns.
      heads: heads of a block. 2: each warpgroup has its own; 1: the warpgroups share q and k and split the columns.
      stages: chunks in flight or in use at a time.
      parts: pieces of a row that are swept at the same time.
      chunks: chunks of a part. The parts cover the row; what lies beyond its end is empty.
    """

    num_tokens: int
    warpgroups: int
    heads: int
    stages: int
    parts: int
    chunks: int

    @property
    def columns(self) -> int:
        """Value columns per head of a block."""
        return COLUMNS * self.warpgroups // self.heads


def make_plan(key_shape: Sequence[int], value_dim: int, num_tokens: int, *, problems: int = 1) -> Plan:
    """The plan of a launch of `problems` calls with k [B, _, H, K], K and V multiples of 64, and rows of N tokens."""
    batch, _, num_heads, key_dim = key_shape
    if value_dim % (2 * COLUMNS) == 0 and key_dim <= 192:
        warpgroups, heads = 2, 1
    elif value_dim == COLUMNS and num_heads % 2 == 0 and key_dim <= 128:
        warpgroups, heads = 2, 2
    else:
        warpgroups, heads = 1, 1
    stages = next(n for n in range(_MAX_STAGES, 0, -1) if _bytes(key_dim, warpgroups, heads, n) <= _SHARED_MEMORY)
    chunks = -(-num_tokens // CHUNK)
    blocks = problems * batch * num_heads * value_dim // (COLUMNS * warpgroups)
    parts = 1
    while blocks * parts * 2 <= _MULTIPROCESSORS and chunks >= parts * 2 * _MIN_CHUNKS_PER_PART:
        parts *= 2
    return Plan(num_tokens, warpgroups, heads, stages, parts, -(-chunks // parts))


def _bytes(key_dim: int, warpgroups: int, heads: int, stages: int) -> int:
    """Shared memory of a block: the stages (q, k, v, places), then the state, the scaled values and the output."""
    tile = CHUNK * COLUMNS * 2
    qk = 2 * heads * CHUNK * key_dim * 2
    return stages * (qk + warpgroups * tile + 4 * CHUNK * 4) + warpgroups * (key_dim * COLUMNS * 2 + 2 * tile)
