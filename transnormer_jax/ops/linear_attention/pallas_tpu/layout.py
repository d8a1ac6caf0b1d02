"""How a call is divided on a TPU: the tokens and heads of a grid step, and how heads share the 128 lanes.

The kernels see tokens as [B, N, H * K], as a projection leaves them, so that no transposed copy exists in HBM. A grid
step has a block of tokens of a few heads. Inside, a block is cut into chunks and the heads into groups: heads whose V
features do not fill the 128 lanes of a register go through the matrix unit together, kept apart by masks on lanes.
"""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from transnormer_jax.errors import UserError
from transnormer_jax.ops.hardware import Hardware
from transnormer_jax.ops.linear_attention.decay import FLOOR
from transnormer_jax.ops.linear_attention.operands import Problem

LANES = 128
BORDER = float(math.floor(FLOOR * math.log2(math.e)))
"""The step at a document border, in log2: whole, so that sums of it are exact."""


class Generation(NamedTuple):
    """What suits a generation of TPUs."""

    name: str  # as in the names that devices give themselves
    chunk: int  # tokens per chunk: the side of the matrix unit
    lanes: int  # of one array in a block: enough independent heads to keep the matrix units busy
    block_bytes: int  # size of one array in a block
    vmem_bytes: int  # what a kernel may use


# By benchmarks/tpu_schedule.py, blocks of half as many heads take 8 to 20% longer.
_GENERATIONS = [
    Generation("v4", 128, 512, 2**19, 15 * 2**20),
    Generation("v5", 128, 1024, 2**20, 56 * 2**20),
    Generation("v6", 256, 1024, 2**20, 56 * 2**20),
    Generation("7", 256, 1024, 2**20, 56 * 2**20),
]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The static part of a kernel."""

    problem: Problem
    chunk: int  # tokens per matrix product
    chunks: int  # per block
    heads: int  # per block
    group: int  # heads that share the lanes of v
    vmem_bytes: int  # what a kernel may use

    @property
    def block(self) -> int:
        """Tokens per block."""
        return self.chunk * self.chunks

    @property
    def num_blocks(self) -> int:
        """Blocks per row."""
        return -(-self.problem.num_tokens // self.block)

    @property
    def padded_tokens(self) -> int:
        """Tokens of all blocks of a row."""
        return self.num_blocks * self.block

    @property
    def ragged(self) -> bool:
        """Whether the last block extends beyond the row."""
        return self.padded_tokens != self.problem.num_tokens

    @property
    def state_shape(self) -> tuple[int, int]:
        """The states of a block of heads: [K, lanes of v]."""
        return self.problem.key_dim, self.heads * self.problem.value_dim

    @property
    def per_token(self) -> bool:
        """Whether each head has a row of cumulative log decay, else all share one that counts tokens.

        In half precision this is also the cheaper form for documents: their borders become steps of the decay.
        """
        return self.problem.decay_per_token or (self.problem.packed and not self.exact)

    @property
    def exact(self) -> bool:
        """Whether digits matter so much that document borders and very strong steps are not added to the others."""
        return self.problem.dtype == jnp.float32

    @property
    def num_step_rows(self) -> int:
        """The first rows of `DecayOperands.rows`: one per head, one for all heads, or none."""
        return self.heads if self.per_token else int(self.problem.packed)

    @property
    def num_rows(self) -> int:
        """All rows, whole registers of 8 sublanes: steps, then as many for borders if apart."""
        return _round_up((1 + self.exact) * self.num_step_rows, 8)

    def border_step(self, row: int) -> float:
        """What a document border adds to a row."""
        return BORDER if not self.exact or row >= self.num_step_rows else 0.0

    @property
    def num_gradient_rows(self) -> int:
        """Rows of the decay's gradient: two per head."""
        return _round_up(2 * self.heads, 8)

    def vmem_needed(self) -> int:
        """Bytes that the larger of the two kernels uses: blocks, twice for the pipeline, states, and spilled registers.

        The last are an estimate from what libtpu 0.0.52 asked for where it ran out of memory.
        """
        problem, size = self.problem, jnp.dtype(self.problem.dtype).itemsize
        keys = _round_up(self.heads // self.problem.heads_per_key * problem.key_dim, LANES)
        values = _round_up(self.heads * problem.value_dim, LANES)
        state = 4 * _round_up(problem.key_dim, 8) * values
        spilled = 4 * size * self.chunk * (4 * self.heads * _round_up(self.chunk, LANES) + keys + values)
        forward = (2 * keys + 2 * values) * size + 4 * self.num_rows
        forward = 2 * self.block * forward + (3 + 4 * (problem.max_segments or 1)) * state + spilled // 2
        if problem.max_segments is not None:
            return forward
        backward = (4 * keys + 3 * values) * size + 4 * (self.num_rows + self.num_gradient_rows)
        backward = 2 * self.block * backward + (7 + self.chunks) * state + spilled
        return max(forward, backward)

    def tokens(self, size: int, *, keys: bool = False, reverse: bool = False) -> pl.BlockSpec:
        """Blocks of [B, N, H * size], of key heads if `keys`; with `reverse` from the last to the first."""
        lanes = self.heads // (self.problem.heads_per_key if keys else 1) * size
        return self._spec((1, self.block, lanes), "bnh", reverse)

    def state(self, x: Array) -> pl.BlockSpec:
        """The states [B, K, H * V], or [B, S, K, H * V]."""
        documents = x.shape[1:-2]
        return self._spec((1, *documents, *self.state_shape), "b" + "_" * len(documents) + "_h")

    def saved_states(self, *, reverse: bool = False) -> pl.BlockSpec:
        """The states before each block, [B, blocks, K, H * V]."""
        return self._spec((1, 1, *self.state_shape), "bn_h", reverse)

    def rows(self, num_rows: int, *, per_head: bool = True, reverse: bool = False) -> pl.BlockSpec:
        """Rows of one number per token, [B, blocks of heads or 1, num_rows, padded N]."""
        return self._spec((1, 1, num_rows, self.block), "bh_n" if per_head else "b__n", reverse)

    def scalars(self, x: Array, *, per_row: bool = False, reverse: bool = False) -> pl.BlockSpec:
        """Scalars of each row, [B, 1, n], or of each block of one row or of all, [#B * blocks, 1, n]."""
        axis = "b" if per_row else "m" if x.shape[0] > self.num_blocks else "n"
        return self._spec((1, *x.shape[1:]), axis + "__", reverse, memory_space=pltpu.SMEM)

    def _spec(self, shape: tuple[int, ...], axes: str, reverse: bool = False, **options: Any) -> pl.BlockSpec:
        """The block of a row (b), of heads (h), of tokens (n), or of tokens of all rows (m); or the only one (_)."""

        def index(b: Array, h: Array, n: Array) -> tuple[Array | int, ...]:
            n = self.num_blocks - 1 - n if reverse else n
            indices: dict[str, Array | int] = {"b": b, "h": h, "n": n, "_": 0}
            if "m" in axes:
                indices["m"] = b * self.num_blocks + n
            return tuple(indices[axis] for axis in axes)

        return pl.BlockSpec(shape, index, **options)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Rows, blocks of heads, blocks of tokens."""
        return self.problem.batch, self.problem.num_heads // self.heads, self.num_blocks

    @property
    def compiler_params(self) -> pltpu.CompilerParams:
        """Rows and heads are independent, time is not."""
        return pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=self.vmem_bytes
        )


def choose_layout(problem: Problem, hardware: Hardware, chunk_size: int | None) -> Layout:
    """The largest layout that fits in VMEM, or the smallest there is if none does."""
    if chunk_size and chunk_size % LANES and hardware.platform == "tpu":
        raise UserError(f"chunk_size is {chunk_size}: on a TPU give a multiple of {LANES}, or None for the default.")
    generation = next((g for g in _GENERATIONS if g.name in hardware.kind), _GENERATIONS[1])
    group = LANES // problem.value_dim if LANES % problem.value_dim == 0 else 1
    if problem.num_heads % group:
        group = 1
    # The scores of two heads of a group are computed together, so that chunks of 128 fill a unit of 256.
    chunk = chunk_size or (LANES if group > 1 else generation.chunk)
    size = jnp.dtype(problem.dtype).itemsize
    for heads in _heads_per_block(problem, group, generation.lanes):
        bytes_per_chunk = chunk * heads * max(problem.key_dim, problem.value_dim) * size
        chunks = min(max(1, generation.block_bytes // bytes_per_chunk), -(-problem.num_tokens // chunk))
        for chunks in itertools.takewhile(bool, (chunks >> i for i in itertools.count())):
            layout = Layout(problem, chunk, chunks, heads, group, generation.vmem_bytes)
            if layout.vmem_needed() <= layout.vmem_bytes:
                return layout
    return layout


def _heads_per_block(problem: Problem, group: int, lanes: int) -> list[int]:
    """The numbers of heads that fill whole registers, the one closest to the block's width first; else all heads."""
    unit = math.lcm(group, problem.heads_per_key)
    key_unit = problem.heads_per_key * LANES // math.gcd(problem.key_dim, LANES)
    whole = [
        heads
        for heads in range(unit, problem.num_heads + 1, unit)
        if problem.num_heads % heads == 0 and heads % key_unit == 0 and heads * problem.value_dim % LANES == 0
    ]
    wide = lanes / max(problem.key_dim, problem.value_dim)
    closest = sorted(whole, key=lambda heads: (abs(math.log(heads / wide)), heads))
    return [heads for heads in closest if heads <= closest[0]] or [problem.num_heads]


def _round_up(x: int, unit: int) -> int:
    return -(-x // unit) * unit


def join_heads(x: Float[Array, "B N H K"]) -> Float[Array, "B N _"]:
    """[B, N, H * K], which is free where a projection made x."""
    return x.reshape(*x.shape[:2], -1)


def join_state(state: Float[Array, "*B H K V"]) -> Float[Array, "*B K _"]:
    """[..., K, H * V]: the lanes of v."""
    state = jnp.moveaxis(state, -3, -2)
    return state.reshape(*state.shape[:-2], -1)


def split_state(joined: Float[Array, "*B K _"], like: Float[Array, "*B H K V"]) -> Float[Array, "*B H K V"]:
    """The opposite of `join_state`."""
    *leading, h, k, v = like.shape
    return jnp.moveaxis(joined.reshape(*leading, k, h, v), -2, -3)
