"""The decay weights of a chunk, made inside the kernel from the positions of its tokens: those of `decay.py`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Int

from transnormer_jax.ops.linear_attention.segments import Segments

CHUNK = 64  # tokens: the height of a wgmma tile
_LOG2_E = math.log2(math.e)
_ROWS = plgpu.Layout.WGMMA.reduce(1)  # one number per row of a product
_COLS = plgpu.Layout.WGMMA.reduce(0)


def chunk_positions(segments: Segments, num_chunks: int) -> Int[Array, "B M 4 C"]:
    """Per chunk: positions, segment indices, and the steps from each token to the left and right border of its chunk.

    The left border is the token before the chunk, the right border its last token. The steps are -1 where the border
    is in another document.
    """
    padding = num_chunks * CHUNK - segments.position.shape[1]
    position, index = (jnp.pad(x, ((0, 0), (0, padding)), mode="edge").reshape(len(x), -1, CHUNK) for x in segments)
    left, index_left = (jnp.pad(x[:, :-1, -1:], ((0, 0), (1, 0), (0, 0))) for x in (position, index))
    to_left = jnp.where(index == index_left, position - left, -1)
    to_right = jnp.where(index == index[..., -1:], position[..., -1:] - position, -1)
    return jnp.stack([position, index, to_left, to_right], axis=2)


class ChunkWeights(NamedTuple):
    """Float32 weights of one chunk, in the direction of the sweep."""

    intra: Callable[[], Array]  # [C, C]
    q_decay: Array  # [C]
    k_decay: Array  # [C]
    chunk_decay: Array  # []


def plain_weights(log_decay: Array, *, reverse: bool) -> Callable[[Array], ChunkWeights]:
    """For rows without documents: a function of the number of tokens that the chunk holds, 0 to C."""
    token = _iota((CHUNK,), 0, _ROWS), _iota((CHUNK,), 0, _COLS)
    intra = _intra(log_decay, token, None, reverse=reverse)  # the same in every chunk

    def weights(steps: Array) -> ChunkWeights:
        to_left = jnp.minimum(token[0] + 1, steps)
        return _weights(log_decay, lambda: intra, to_left, steps - to_left, steps, reverse=reverse)

    return weights


def packed_weights(log_decay: Array, positions: Any, *, reverse: bool) -> ChunkWeights:
    """For packed rows: `positions` is one chunk of `chunk_positions`, in shared memory."""

    def along(row: int) -> tuple[Array, Array]:
        return plgpu.load(positions.at[row], layout=_ROWS), plgpu.load(positions.at[row], layout=_COLS)

    # Read here, before the caller's fence: the next copy into this memory has to wait for it.
    position, index = along(0), along(1)

    def intra() -> Array:
        return _intra(log_decay, position, index, reverse=reverse)

    to_left, to_right = (plgpu.load(positions.at[row], layout=_ROWS) for row in (2, 3))
    return _weights(log_decay, intra, to_left, to_right, positions[2, CHUNK - 1], reverse=reverse)


def _weights(
    log_decay: Array, intra: Callable[[], Array], to_left: Array, to_right: Array, steps: Array, *, reverse: bool
) -> ChunkWeights:
    """From the steps between each token and the borders, and between these; negative across a document border."""
    from_left, to_right = (_decay(log_decay, x, x >= 0) for x in (to_left, to_right))
    chunk_decay = jnp.where(steps < 0, -1.0, _expm1(log_decay * steps.astype(jnp.float32)))
    q_decay, k_decay = (to_right, from_left) if reverse else (from_left, to_right)
    return ChunkWeights(intra, q_decay, k_decay, chunk_decay)


def _intra(
    log_decay: Array, position: tuple[Array, Array], index: tuple[Array, Array] | None, *, reverse: bool
) -> Array:
    """From positions and segment indices, each along the rows and along the columns."""

    def both(pair: tuple[Array, Array]) -> tuple[Array, Array]:
        i, j = (lax.broadcast_in_dim(x, (CHUNK, CHUNK), [axis]) for axis, x in enumerate(pair))
        return i, j

    i, j = (_iota((CHUNK, CHUNK), axis, plgpu.Layout.WGMMA) for axis in (0, 1))
    at_i, at_j = both(position)
    distance, mask = (at_j - at_i, i <= j) if reverse else (at_i - at_j, i >= j)
    if index is not None:
        index_i, index_j = both(index)
        mask &= index_i == index_j
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
