"""`ConversationRows`: whole conversations, as many to a row as fit, with what is to be learnt of each."""

import bisect
import functools
import sys
from collections import defaultdict

import numpy as np

from transnormer_jax.data.concatenation import Documents, Int32s, Int64s
from transnormer_jax.data.conversations import read_numbers
from transnormer_jax.data.shuffle import permutation
from transnormer_jax.errors import UserError


class ConversationRows:
    """An endless random-access source of rows, a pure function of `(seed, row index)`.

    Each epoch holds every conversation once, whole. They are packed by best fit, longest first, as Ding et al. (2024,
    arXiv 2404.10830) pack documents; which of the equally long ones are in a row together, and the order of the rows,
    differ from epoch to epoch.

    Attributes:
      rows_per_epoch: rows that hold all conversations once.
    """

    def __init__(self, conversations: Documents, length: int, *, bos_id: int, pad_id: int, seed: int):
        """Packs conversations.

        Args:
          conversations: from `load_conversations`, for rows of this length; empty ones are left out.
          length: tokens per row.
          bos_id: the begin token, before each conversation.
          pad_id: the token of padding.
          seed: of the order, from 0 on.

        Raises:
          UserError: no conversation has a token to be learnt, or `seed` is negative.
        """
        self._kept = np.flatnonzero(conversations.lengths)
        if not len(self._kept) or seed < 0:
            raise UserError(
                f"{len(self._kept)} conversations with an answer that fits into a row of {length} tokens, data seed "
                f"{seed}: choose a larger sequence_length, and a seed from 0 on."
            )
        self._conversations, self._length, self._seed = conversations, length, seed
        self._bos_id, self._pad_id = bos_id, pad_id
        self._lengths = conversations.lengths[self._kept]
        rows = best_fit(-np.sort(-self._lengths), length)
        self.rows_per_epoch = int(rows.max()) + 1
        # Of each row, the places of its conversations in the order from long to short.
        self._places = np.split(np.argsort(rows, kind="stable"), np.cumsum(np.bincount(rows))[:-1])
        # Threads that read ahead are on both sides of the border between two epochs.
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs`, `targets`, `segment_ids` and `mask` (1 where the target is learnt), int32 [length]."""
        epoch, place = divmod(row, self.rows_per_epoch)
        conversations, rows = self._epoch(epoch)
        inputs, targets = (np.full(self._length, self._pad_id, np.int32) for _ in range(2))
        segment_ids, mask = (np.zeros(self._length, np.int32) for _ in range(2))
        start = 0
        for segment, index in enumerate(conversations[self._places[rows[place]]], start=1):
            tokens, learnt, _ = read_numbers(self._conversations[index])
            own = slice(start, start + len(tokens))
            inputs[own], targets[own] = [self._bos_id, *tokens[:-1]], tokens
            segment_ids[own], mask[own] = segment, learnt
            start = own.stop
        return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids, "mask": mask}

    def _shuffled(self, epoch: int) -> tuple[Int64s, Int64s]:
        """Of an epoch: the conversations from long to short, and the order of the rows."""
        order = permutation(len(self._kept), self._seed, epoch, 0)
        by_length = order[np.argsort(-self._lengths[order], kind="stable")]
        return self._kept[by_length], permutation(self.rows_per_epoch, self._seed, epoch, 1)


def best_fit(lengths: Int64s, capacity: int) -> Int64s:
    """Returns the bin, 0, 1, ..., of each length: the fullest that has room for it, otherwise a new one.

    Args:
      lengths: [documents] int64 from 1 to `capacity`, the longest first.
      capacity: of a bin.
    """
    bins = np.empty(len(lengths), np.int64)
    free = defaultdict[int, list[int]](list)  # room -> bins
    rooms, count = list[int](), 0  # the rooms for which there are bins, ascending
    for i, length in enumerate(lengths.tolist()):
        place = bisect.bisect_left(rooms, length)
        if place < len(rooms):
            room = rooms[place]
            bins[i] = free[room].pop()
            if not free[room]:
                del rooms[place]
        else:
            room, bins[i], count = capacity, count, count + 1
        if room > length:
            if not free[room - length]:
                bisect.insort(rooms, room - length)
            free[room - length].append(bins[i])
    return bins
