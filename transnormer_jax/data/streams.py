"""Evaluation windows: whole documents in order, so that a recurrent state can be carried across windows."""

import heapq
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.concatenation import Concatenation, Documents, Int64s


def evaluation_windows(
    documents: Documents, *, batch_size: int, window: int, bos_id: int, eos_id: int, pad_id: int
) -> Iterator[dict[str, npt.NDArray[np.int32] | npt.NDArray[np.bool_]]]:
    """Yields batches in which each row goes on where it stopped in the batch before.

    Every token of every document, and its end, is a target exactly once, predicted from all of the document before it
    if the caller carries each row's state from batch to batch and zeroes it where `restart` is true.

    Args:
      documents: the documents of a split.
      batch_size: rows; the documents are dealt to them evenly.
      window: positions per row and batch.
      bos_id: the begin token.
      eos_id: the end token.
      pad_id: the token of a row that is finished.

    Yields:
      `inputs`, `targets`, `segment_ids`: int32 [batch_size, window]. A segment id belongs to one document of the row
      throughout; 0 is the end of a finished row.
      `restart`: bool [batch_size], the window's first position begins a document.
    """
    rows = [
        Concatenation(documents, order, bos_id=bos_id, eos_id=eos_id, pad_id=pad_id)
        for order in _deal(documents.lengths + 1, batch_size)
    ]
    for start in range(0, max(row.size for row in rows), window):
        inputs, targets, segment_ids = zip(*(row.window(start, window) for row in rows), strict=True)
        yield {
            "inputs": np.stack(inputs),
            "targets": np.stack(targets),
            "segment_ids": np.stack(segment_ids),
            "restart": np.array([row.begins_document(start) for row in rows]),
        }


def _deal(sizes: Int64s, num_rows: int) -> list[Int64s]:
    """Deals the documents, the longest first, each to the row that is shortest so far."""
    dealt: list[list[int]] = [[] for _ in range(num_rows)]
    shortest = [(0, row) for row in range(num_rows)]
    for document in np.argsort(-sizes, kind="stable"):
        size, row = shortest[0]
        dealt[row].append(document)
        heapq.heapreplace(shortest, (size + int(sizes[document]), row))
    return [np.array(row, np.int64) for row in dealt]
