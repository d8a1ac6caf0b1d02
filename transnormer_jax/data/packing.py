"""Training rows: the documents of an epoch in random order, end to end, cut into rows of one length."""

import sys
import threading

import numpy as np

from transnormer_jax.data.concatenation import Concatenation, Documents, Int32s, Int64s
from transnormer_jax.errors import UserError


class PackedRows:
    """An endless random-access source of rows, a pure function of `(seed, row index)`.

    Row r belongs to epoch r // `rows_per_epoch`. Each epoch has its own order of the documents and holds every token
    once; what is left of its last row is padding. A document longer than the rest of a row goes on in the next row.

    Attributes:
      rows_per_epoch: rows that hold all documents once.
    """

    def __init__(self, documents: Documents, sequence_length: int, *, bos_id: int, eos_id: int, pad_id: int, seed: int):
        """Cuts `documents` into rows of `sequence_length` tokens.

        Raises:
          UserError: `sequence_length` is not positive, or `seed` is negative.
        """
        if sequence_length < 1 or seed < 0:
            raise UserError(
                f"sequence_length is {sequence_length} and the data seed {seed}: choose a positive length and a seed "
                "that is not negative."
            )
        self._documents = documents
        self._sequence_length = sequence_length
        self._special = {"bos_id": bos_id, "eos_id": eos_id, "pad_id": pad_id}
        self._seed = seed
        self._lines: dict[int, Concatenation] = {}
        self._lock = threading.Lock()
        self.rows_per_epoch = -(-int((documents.lengths + 1).sum()) // sequence_length)

    def __len__(self) -> int:
        return sys.maxsize  # Grain takes indices modulo the length; epochs go on.

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs`, `targets` and `segment_ids`, int32 [sequence_length].

        Segments are numbered 1, 2, ... from the start of the row; 0 is padding.
        """
        epoch, row_in_epoch = divmod(row, self.rows_per_epoch)
        start = row_in_epoch * self._sequence_length
        inputs, targets, places = self._line(epoch).window(start, self._sequence_length)
        segment_ids = np.where(places > 0, places - places[0] + 1, 0)
        return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}

    def _line(self, epoch: int) -> Concatenation:
        with self._lock:  # Threads that enter an epoch together sort it once.
            if epoch not in self._lines:
                order = _permutation(len(self._documents.lengths), self._seed, epoch)
                line = Concatenation(self._documents, order, **self._special)
                # Threads that read ahead are on both sides of the border between two epochs.
                before = {epoch - 1: self._lines[epoch - 1]} if epoch - 1 in self._lines else {}
                self._lines = {**before, epoch: line}
            return self._lines[epoch]


def _permutation(size: int, seed: int, epoch: int) -> Int64s:
    # NumPy keeps the raw stream of a bit generator the same for ever, but not `Generator.permutation`.
    keys = np.random.PCG64([seed, epoch]).random_raw(size)
    return np.argsort(keys, kind="stable")
