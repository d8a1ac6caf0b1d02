"""What a source of training rows is, and batches of a fixed number of its rows."""

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.number]


class Rows(Protocol):
    """A random-access source of rows, each a pure function of the row number: arrays by name.

    `segment_ids`, int32 [N] with 0 for padding, and what the task reads beside them. An array of one name has one shape
    [...] and one dtype in all rows.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> Mapping[str, Array]: ...


def batches_of(rows: Rows, count: int, batch_size: int) -> Iterator[dict[str, Array]]:
    """Yields the first `count` of `rows` in order, `batch_size` at a time.

    What the last batch lacks is rows of zeros. Their segment ids are 0, so they are padding throughout.

    Yields:
      The arrays of the rows by name, [batch_size, ...], each in its dtype.
    """
    for start in range(0, count, batch_size):
        batch = [rows[row] for row in range(start, min(start + batch_size, count))]
        padding = [{name: np.zeros_like(array) for name, array in batch[0].items()}] * (batch_size - len(batch))
        yield {name: np.stack([row[name] for row in batch + padding]) for name in batch[0]}
