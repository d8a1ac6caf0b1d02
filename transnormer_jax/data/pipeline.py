"""The Grain pipeline: rows to the share of each global batch that a process needs."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transnormer_jax.data.rows import Array, Rows

if TYPE_CHECKING:
    import grain


def train_batches(
    rows: Rows,
    *,
    batch_size: int,
    first_row: int = 0,
    offsets: Sequence[int] | None = None,
    num_threads: int = 1,
    batches_ahead: int = 8,
) -> "grain.DatasetIterator":
    """Returns an endless iterator over one process's share of the global batches.

    Global batch b is the b-th `batch_size` rows from `first_row` on. So the stream is the same on any number of
    processes, whichever rows each of them needs, and one integer is its position.

    Args:
      rows: the source.
      batch_size: rows per global batch.
      first_row: the row at which batch 0 begins: the number of rows consumed before, by batches of whatever size.
      offsets: rows of each batch that the process needs, each in 0 ... batch_size - 1; None for all.
      num_threads: threads that read ahead; 0 reads each batch when it is due. Rows are cheap; a second thread contends
        with the first for Python's lock.
      batches_ahead: batches that they may read ahead.

    Returns:
      An iterator of dicts of the arrays of a row, stacked: [len(offsets), ...].
    """
    # Grain brings JAX and Orbax along; who only tokenises does without them.
    import grain

    share = _Share(rows, batch_size, first_row, range(batch_size) if offsets is None else offsets)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=batches_ahead)
    return iter(grain.MapDataset.source(share).to_iter_dataset(options))


class _Share:
    """Random access to one process's part of every batch."""

    def __init__(self, rows: Rows, batch_size: int, first_row: int, offsets: Sequence[int]):
        self._rows, self._batch_size, self._first_row, self._offsets = rows, batch_size, first_row, offsets

    def __len__(self) -> int:
        return sys.maxsize // self._batch_size

    def __getitem__(self, batch: int) -> dict[str, Array]:
        start = self._first_row + batch * self._batch_size
        rows = [self._rows[start + offset] for offset in self._offsets]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
