"""Training rows: documents in random order, end to end, cut into rows of one length, which are shuffled again."""

import sys
import threading
from typing import NamedTuple

import numpy as np

from transnormer_jax.data.concatenation import Concatenation, Documents, Int32s, Int64s
from transnormer_jax.data.shuffle import permutation
from transnormer_jax.errors import UserError


class PackedRows:
    """An endless random-access source of rows, a pure function of `(seed, row index)`.

    Row r belongs to epoch r // `rows_per_epoch`. Each epoch has its own order of the documents and holds every token
    once; what is left at the end of the line is padding. A document longer than the rest of a row goes on in the next
    row of the line. The rows then come in random order: neighbours in a batch would otherwise be parts of one document.

    Attributes:
      rows_per_epoch: rows that hold all documents once.
    """

    def __init__(self, documents: Documents, sequence_length: int, *, bos_id: int, eos_id: int, pad_id: int, seed: int):
        """Cuts documents into rows.

        Args:
          documents: tokens of a split, from `load_split`.
          sequence_length: tokens per row.
          bos_id: the begin token, before each document.
          eos_id: the end token, predicted after each.
          pad_id: the token of padding.
          seed: of the orders of documents and rows, from 0 on.

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
        self._epochs: dict[int, _Epoch] = {}
        self._lock = threading.Lock()
        self.rows_per_epoch = -(-int((documents.lengths + 1).sum()) // sequence_length)

    def __len__(self) -> int:
        return sys.maxsize  # Grain takes indices modulo the length; epochs go on.

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs`, `targets` and `segment_ids`, int32 [sequence_length].

        Segments are numbered 1, 2, ... from the start of the row; 0 is padding.
        """
        number, row_in_epoch = divmod(row, self.rows_per_epoch)
        epoch = self._epoch(number)
        start = int(epoch.row_order[row_in_epoch]) * self._sequence_length
        inputs, targets, places = epoch.line.window(start, self._sequence_length)
        segment_ids = np.where(places > 0, places - places[0] + 1, 0)
        return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}

    def row_order(self, epoch: int) -> Int64s:
        """Returns where each row of an epoch starts in the concatenation of its documents, int64 [rows_per_epoch]."""
        return self._epoch(epoch).row_order

    def _epoch(self, number: int) -> "_Epoch":
        with self._lock:  # Threads that enter an epoch together sort it once.
            if number not in self._epochs:
                documents = permutation(len(self._documents.lengths), self._seed, number, 0)
                epoch = _Epoch(
                    Concatenation(self._documents, documents, **self._special),
                    permutation(self.rows_per_epoch, self._seed, number, 1),
                )
                # Threads that read ahead are on both sides of the border between two epochs.
                before = {number - 1: self._epochs[number - 1]} if number - 1 in self._epochs else {}
                self._epochs = {**before, number: epoch}
            return self._epochs[number]


class _Epoch(NamedTuple):
    line: Concatenation
    row_order: Int64s
