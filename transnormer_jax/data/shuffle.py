"""Random orders that stay the same for ever: a saved position in the data must mean the same rows years later."""

import threading

import numpy as np

from transnormer_jax.data.concatenation import Int64s
from transnormer_jax.errors import UserError


def permutation(size: int, *seed: int) -> Int64s:
    """Returns 0, ..., size - 1 in an order that depends on the seed alone, int64 [size]."""
    # NumPy keeps the raw stream of a bit generator the same for ever, but not `Generator.permutation`.
    keys = np.random.PCG64(seed).random_raw(size)
    return np.argsort(keys, kind="stable")


class ShuffledEpochs:
    """Endless epochs over `size` things, each in an order of its own; threads may share one."""

    def __init__(self, size: int, seed: int):
        """Shuffles by `seed`.

        Raises:
          UserError: there is nothing to shuffle, or `seed` is negative.
        """
        if size < 1 or seed < 0:
            raise UserError(f"{size} examples and data seed {seed}: choose a split with examples and a seed from 0 on.")
        self._size, self._seed = size, seed
        self._orders: dict[int, Int64s] = {}
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> int:
        """Returns which thing comes at `row`; row r is in epoch r // size."""
        epoch, place = divmod(row, self._size)
        with self._lock:  # Threads that enter an epoch together sort it once.
            if epoch not in self._orders:
                # Threads that read ahead are on both sides of the border between two epochs.
                before = {epoch - 1: self._orders[epoch - 1]} if epoch - 1 in self._orders else {}
                self._orders = {**before, epoch: permutation(self._size, self._seed, epoch)}
            return int(self._orders[epoch][place])
