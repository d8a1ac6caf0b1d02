"""Batches on a mesh: every process reads only the rows that its devices need."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from transnormer_jax.data import DataConfig, Rows, train_batches
from transnormer_jax.distributed import batch_sharding
from transnormer_jax.tasks import Batch


def batches_on_mesh(
    rows: Rows, batch_size: int, first_row: int, mesh: Mesh, data: DataConfig | None = None
) -> Iterator[Batch]:
    """Yields global batches from `first_row` on, laid out by `batch_sharding`.

    Where an axis other than `data` and `fsdp` spans processes, several of them read the same rows. `data` says how far
    they read ahead.
    """
    offsets = own_rows(batch_size, mesh)
    place = {offset: i for i, offset in enumerate(offsets)}

    def put(share: np.ndarray) -> jax.Array:
        shape = (batch_size, *share.shape[1:])

        def shard(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch_size)
            return share[(slice(place[start], place[stop - 1] + 1), *index[1:])]

        return jax.make_array_from_callback(shape, batch_sharding(mesh, shape), shard)

    data = data or DataConfig()
    shares = train_batches(
        rows,
        batch_size=batch_size,
        first_row=first_row,
        offsets=offsets,
        num_threads=data.read_threads,
        batches_ahead=data.read_ahead,
    )
    for share in shares:
        yield {name: put(array) for name, array in share.items()}


def own_rows(batch_size: int, mesh: Mesh) -> list[int]:
    """The rows of each global batch that this process's devices hold, in order."""
    shape = (batch_size,)
    indices: Any = batch_sharding(mesh, shape).addressable_devices_indices_map(shape).values()
    return sorted({row for (rows,) in indices for row in range(*rows.indices(batch_size))})
