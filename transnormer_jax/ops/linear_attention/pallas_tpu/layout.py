"""How a call is laid out on a TPU: which tokens and heads a grid step holds, and how heads share the 128 lanes.

The kernels see tokens as [B, N, H * K], as a projection leaves them, so no transposed copy exists in HBM. A grid step
holds a block of tokens of a few heads. Inside, a block is cut into chunks, and the heads into groups: heads whose V
features do not fill the 128 lanes of a register go through the matrix unit together, kept apart by masks on lanes.
"""

import dataclasses
import math
from typing import NamedTuple

import jax.numpy as jnp

from transnormer_jax.errors import UserError
from transnormer_jax.ops.hardware import Hardware
from transnormer_jax.ops.linear_attention.backends import Problem

LANES = 128

# Lanes of one array in a block: enough independent heads to keep the matrix units busy.
_LANES_PER_BLOCK = 512


class Generation(NamedTuple):
    """What suits a generation of TPUs.

    Attributes:
      name: as in the names that devices give themselves.
      chunk: tokens per chunk: the side of the matrix unit.
      block_bytes: size of one array in a block. The backward kernel holds seven arrays, twice for the pipeline.
      vmem_bytes: what a kernel may use of VMEM.
    """

    name: str
    chunk: int
    block_bytes: int
    vmem_bytes: int


# By benchmarks/tpu_schedule.py, blocks of half this size take 3 to 11% longer, chunks of 128 on v6e 64%.
_GENERATIONS = [
    Generation("v4", 128, 2**19, 15 * 2**20),
    Generation("v5", 128, 2**20, 48 * 2**20),
    Generation("v6", 256, 2**20, 48 * 2**20),
    Generation("7", 256, 2**20, 48 * 2**20),
]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static part of a kernel.

    Attributes:
      problem: the sizes of the call.
      reverse: whether the state runs from the last token to the first.
      chunk: tokens per matrix product.
      chunks: chunks per block.
      heads: heads per block.
      group: heads that share the lanes of v.
      vmem_bytes: what a kernel may use of VMEM.
    """

    problem: Problem
    reverse: bool
    chunk: int
    chunks: int
    heads: int
    group: int
    vmem_bytes: int

    @property
    def block(self) -> int:
        """Tokens per block."""
        return self.chunk * self.chunks

    @property
    def num_blocks(self) -> int:
        """Blocks per row."""
        return -(-self.problem.num_tokens // self.block)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, blocks of heads, blocks of tokens."""
        return self.problem.batch, self.problem.num_heads // self.heads, self.num_blocks

    @property
    def ragged(self) -> bool:
        """Whether the last block reaches beyond the row."""
        return self.problem.num_tokens % self.block != 0

    @property
    def state_shape(self) -> tuple[int, int]:
        """The states of a block of heads: [K, lanes of v]."""
        return self.problem.key_dim, self.heads * self.problem.value_dim

    @property
    def opposite(self) -> "Layout":
        """The same layout, walked from the other end."""
        return dataclasses.replace(self, reverse=not self.reverse)

    @property
    def chunk_order(self) -> list[int]:
        """The chunks of a block in the order in which the state passes them."""
        return list(range(self.chunks))[:: -1 if self.reverse else 1]

    @property
    def keys_share_lanes(self) -> bool:
        """Whether the keys of a group go through the matrix unit together; else head by head."""
        return self.group > 1 and self.problem.key_dim % LANES != 0


def choose_layout(problem: Problem, hardware: Hardware, *, reverse: bool, chunk_size: int | None) -> Layout:
    """The layout for a call, by the generation of the TPU and the size of the heads.

    Raises:
      UserError: on a TPU, chunks are not a multiple of the 128 lanes of a register.
    """
    if chunk_size and chunk_size % LANES and hardware.platform == "tpu":
        raise UserError(f"chunk_size is {chunk_size}: on a TPU give a multiple of {LANES}, or None for the default.")
    generation = next((g for g in _GENERATIONS if g.name in hardware.kind), _GENERATIONS[1])
    chunk = chunk_size or generation.chunk
    group = LANES // problem.value_dim if LANES % problem.value_dim == 0 else 1
    if problem.num_heads % group:
        group = 1
    heads = _heads_per_block(problem, group)
    bytes_per_chunk = chunk * heads * max(problem.key_dim, problem.value_dim) * jnp.dtype(problem.dtype).itemsize
    chunks = min(max(1, generation.block_bytes // bytes_per_chunk), -(-problem.num_tokens // chunk))
    return Layout(problem, reverse, chunk, chunks, heads, group, generation.vmem_bytes)


def _heads_per_block(problem: Problem, group: int) -> int:
    """The number of heads that fills whole registers and comes closest to the block's width, else all heads."""
    whole = [
        heads
        for heads in range(group, problem.num_heads + 1, group)
        if problem.num_heads % heads == 0
        and heads * problem.key_dim % LANES == 0
        and heads * problem.value_dim % LANES == 0
    ]
    if not whole:
        return problem.num_heads
    wide = _LANES_PER_BLOCK / max(problem.key_dim, problem.value_dim)
    return min(whole, key=lambda heads: (abs(math.log(heads / wide)), heads))
