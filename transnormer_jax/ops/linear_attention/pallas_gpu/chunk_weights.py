"""The decay weights of a chunk, made inside the kernel from the places of its tokens: those of `decay.py`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from transnormer_jax.ops.linear_attention.pallas_gpu.places import POSITION, RUN, TO_LEFT, TO_RIGHT
from transnormer_jax.ops.linear_attention.pallas_gpu.plan import CHUNK

_LOG2_E = math.log2(math.e)
_ROWS = plgpu.Layout.WGMMA.reduce(1)  # one number per row of a product
_COLS = plgpu.Layout.WGMMA.reduce(0)


class ChunkWeights(NamedTuple):
    """Float32 weights of one chunk, in the direction of the sweep: see `decay.py`."""

    intra: Callable[[], Array]  # [C, C]
    head: Array  # [C]
    tail: Array  # [C]
    fade: Array  # []


def plain_weights(log_decay: Array, *, reverse: bool) -> Callable[[Array], ChunkWeights]:
    """For rows without documents: a function of the number of tokens that the chunk holds, 0 to C."""
    index = _iota((CHUNK,), 0, _ROWS), _iota((CHUNK,), 0, _COLS)
    intra = _intra(log_decay, index, None, reverse=reverse)  # the same in every chunk

    def weights(steps: Array) -> ChunkWeights:
        to_left = jnp.minimum(index[0] + 1, steps)
        return _weights(log_decay, lambda: intra, to_left, steps - to_left, steps, reverse=reverse)

    return weights


def packed_weights(log_decay: Array, places: Any, *, reverse: bool) -> ChunkWeights:
    """For packed rows: `places` is the chunk's part of `chunk_places`, [4, C] int32, in shared memory."""

    def along(row: int) -> tuple[Array, Array]:
        return plgpu.load(places.at[row], layout=_ROWS), plgpu.load(places.at[row], layout=_COLS)

    # Read here, before the caller's fence: the next copy into this memory has to wait for it.
    position, run = along(POSITION), along(RUN)

    def intra() -> Array:
        return _intra(log_decay, position, run, reverse=reverse)

    to_left, to_right = (plgpu.load(places.at[row], layout=_ROWS) for row in (TO_LEFT, TO_RIGHT))
    return _weights(log_decay, intra, to_left, to_right, places[TO_LEFT, CHUNK - 1], reverse=reverse)


def _weights(
    log_decay: Array, intra: Callable[[], Array], to_left: Array, to_right: Array, steps: Array, *, reverse: bool
) -> ChunkWeights:
    """From the steps between each token and the borders, and between these; negative across a document border."""
    head, tail = (_decay(log_decay, x, x >= 0) for x in (to_left, to_right))
    fade = jnp.where(steps < 0, -1.0, _expm1(log_decay * steps.astype(jnp.float32)))
    return ChunkWeights(intra, tail, head, fade) if reverse else ChunkWeights(intra, head, tail, fade)


def _intra(log_decay: Array, position: tuple[Array, Array], run: tuple[Array, Array] | None, *, reverse: bool) -> Array:
    """From positions and runs, each along the rows and along the columns."""

    def both(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        i, j = (lax.broadcast_in_dim(x, (CHUNK, CHUNK), [axis]) for axis, x in enumerate(pair))
        return i, j

    i, j = (_iota((CHUNK, CHUNK), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
    at_i, at_j = both(position)
    distance, mask = (at_j - at_i, i <= j) if reverse else (at_i - at_j, i >= j)
    if run is not None:
        run_i, run_j = both(run)
        mask &= run_i == run_j
    return _decay(log_decay, distance, mask)


def _decay(log_decay: Array, distance: Array, mask: Array) -> Array:
    return jnp.exp2(jnp.where(mask, log_decay * _LOG2_E * distance.astype(jnp.float32), -jnp.inf))


def _expm1(x: Array) -> Array:
    """exp(x) - 1 for x <= 0: its series near 0, where the difference would lose digits."""
    series = jnp.float32(1)
    for n in range(7, 1, -1):
        series = 1 + x / n * series
    return jnp.where(x > -0.4, x * series, jnp.exp2(x * _LOG2_E) - 1)


def _iota(shape: tuple[int, ...], axis: int, layout: Any) -> Array:
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=layout)
