"""Documents laid end to end, and any window of that line computed on demand."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]


class Documents(Protocol):
    """A sequence of token arrays that knows their lengths; `TokenizedDocuments` is one."""

    @property
    def lengths(self) -> Int64s:
        """Int64 [documents], the tokens of each document."""

    def __getitem__(self, index: int) -> npt.NDArray[np.integer]:
        """Returns the tokens of one document, an integer array [tokens]."""


class Concatenation:
    """Some documents in a given order, end to end.

    A document of n tokens takes n + 1 positions. Its inputs are begin, then its tokens; its targets are its tokens,
    then end. So every token is predicted once, from its own document alone.

    Attributes:
      size: positions in all.
    """

    def __init__(self, documents: Documents, order: Int64s, *, bos_id: int, eos_id: int, pad_id: int):
        """Lays out `documents[order[0]]`, `documents[order[1]]`, ...; past the end of the line is `pad_id`."""
        self._documents = documents
        self._order = order
        self._bos_id, self._eos_id, self._pad_id = bos_id, eos_id, pad_id
        self._ends = np.cumsum(documents.lengths[order] + 1)
        self.size = int(self._ends[-1]) if len(order) else 0

    def begins_document(self, position: int) -> bool:
        """Returns whether a document begins at a position; none does past the end of the line."""
        if not 0 < position < self.size:
            return position == 0 < self.size
        return bool(self._ends[np.searchsorted(self._ends, position)] == position)

    def window(self, start: int, size: int) -> tuple[Int32s, Int32s, Int32s]:
        """Returns `(inputs, targets, segment_ids)`, int32 [size], of the positions from `start` on.

        The segment id of a position is 1 + its document's place in `order`; past the end of the line it is 0.
        """
        inputs = np.full(size, self._pad_id, np.int32)
        targets = np.full(size, self._pad_id, np.int32)
        segment_ids = np.zeros(size, np.int32)
        filled = 0
        place = int(np.searchsorted(self._ends, start, side="right"))
        while filled < size and place < len(self._order):
            tokens = self._documents[self._order[place]]
            skipped = start + filled - int(self._ends[place]) + len(tokens) + 1
            stop = min(size, filled + len(tokens) + 1 - skipped)
            if skipped == 0:
                inputs[filled] = self._bos_id
                inputs[filled + 1 : stop] = tokens[: stop - filled - 1]
            else:
                inputs[filled:stop] = tokens[skipped - 1 : skipped - 1 + stop - filled]
            predicted = tokens[skipped : skipped + stop - filled]
            targets[filled : filled + len(predicted)] = predicted
            targets[filled + len(predicted) : stop] = self._eos_id
            segment_ids[filled:stop] = place + 1
            filled, place = stop, place + 1
        return inputs, targets, segment_ids
