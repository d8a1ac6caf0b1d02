"""The Grain pipeline: rows to this process's share of each global batch."""

from typing import TYPE_CHECKING

from transnormer_jax.data.rows import Rows
from transnormer_jax.errors import UserError

if TYPE_CHECKING:
    import grain

_BATCHES_AHEAD = 8


def train_batches(
    rows: Rows,
    *,
    batch_size: int,
    first_row: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 1,
) -> "grain.DatasetIterator":
    """Returns an endless iterator over this process's share of the global batches.

    Global batch b is the b-th `batch_size` rows from `first_row` on; process p holds the p-th contiguous part of it. So
    the stream is the same on any number of processes, and one integer is its position.

    Args:
      rows: the source.
      batch_size: rows per global batch.
      first_row: the row at which batch 0 begins: the number of rows consumed before, by batches of whatever size.
      process_index: this process.
      process_count: processes that share each batch.
      num_threads: threads that read ahead. Rows are cheap; a second thread contends with the first for Python's lock.

    Returns:
      An iterator of dicts of the arrays of a row, stacked: [batch_size // process_count, ...].

    Raises:
      UserError: `batch_size` is not a positive multiple of `process_count`.
    """
    # Grain brings JAX and Orbax along; who only tokenises does without them.
    import grain

    if batch_size < 1 or batch_size % process_count:
        raise UserError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes: choose a multiple of "
            f"{process_count}."
        )
    shares = grain.MapDataset.source(rows)[first_row:].batch(batch_size // process_count, drop_remainder=True)
    own = shares[process_index::process_count]
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=_BATCHES_AHEAD)
    return iter(own.to_iter_dataset(options))
