"""How the grid of both kernels walks over the arrays."""

from typing import NamedTuple

from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from transnormer_jax.ops.linear_attention.pallas_tpu.layout import Layout
from transnormer_jax.ops.linear_attention.pallas_tpu.weights import ROWS, chunk_fades, chunk_places, decay_rates
from transnormer_jax.ops.linear_attention.segments import Segments


def keys(layout: Layout) -> pl.BlockSpec:
    """Blocks of q, k or their gradients, [B, N, H * K]."""
    return _tokens(layout, layout.heads * layout.problem.key_dim)


def values(layout: Layout) -> pl.BlockSpec:
    """Blocks of v, the output or their gradients, [B, N, H * V]."""
    return _tokens(layout, layout.heads * layout.problem.value_dim)


def _tokens(layout: Layout, lanes: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, layout.block, lanes), lambda b, h, n: (b, time(layout, n), h))


def state(layout: Layout) -> pl.BlockSpec:
    """The state at one end of the row, [B, K, H * V]."""
    return pl.BlockSpec((1, *layout.state_shape), lambda b, h, n: (b, 0, h))


def states(layout: Layout) -> pl.BlockSpec:
    """The states between blocks, [B, blocks, K, H * V]."""
    return pl.BlockSpec((1, 1, *layout.state_shape), lambda b, h, n: (b, time(layout, n), 0, h))


class Scalars(NamedTuple):
    """What the kernels know of decay and documents."""

    arrays: list[Array]
    specs: list[pl.BlockSpec]


def scalars(layout: Layout, log_decay: Array, segments: Segments | None) -> Scalars:
    """The decay rates [H] and the fades of the block's chunks in scalar memory; with documents, the places in VMEM."""
    fades = chunk_fades(layout, log_decay, segments)

    def row_of_fades(b: Array, h: Array, n: Array) -> tuple[Array | int, ...]:
        row = time(layout, n) if segments is None else b * layout.num_blocks + time(layout, n)
        return row, 0, 0

    arrays = [decay_rates(log_decay), fades]
    specs = [
        pl.BlockSpec(memory_space=pltpu.SMEM),
        pl.BlockSpec((1, *fades.shape[1:]), row_of_fades, memory_space=pltpu.SMEM),
    ]
    if segments is not None:
        arrays.append(chunk_places(layout, segments))
        specs.append(pl.BlockSpec((1, ROWS, layout.block), lambda b, h, n: (b, 0, time(layout, n))))
    return Scalars(arrays, specs)


def time(layout: Layout, step: Array) -> Array:
    """The block of tokens at a step of the grid."""
    return layout.num_blocks - 1 - step if layout.reverse else step


def compiler_params(layout: Layout) -> pltpu.CompilerParams:
    """Rows and heads are independent, time is not."""
    return pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=layout.vmem_bytes
    )
