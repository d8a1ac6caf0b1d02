"""`DuplicationRows`: sequences that say everything twice."""

import sys

import numpy as np

from transnormer_jax.data.concatenation import Int32s
from transnormer_jax.errors import UserError

_LENGTH = 128
_SYMBOLS = 10
_SHORTEST, _LONGEST = 32, 62


class DuplicationRows:
    """The sequence duplication task of "Transformers are RNNs" (arXiv 2006.16236, section 4.1), made on the fly.

    `inputs` is w, 0, w and zeros up to 128, where w is n symbols from 1 to 10 and n is uniform from 32 to 62. `targets`
    is `inputs` shifted left. `mask` is 1 at positions n - 1 to 2n - 1, from which the separator and the second w are
    predicted. Nothing tells where the separator comes, but before it no other prediction counts: a model that says
    "separator" until it has seen one can reach an accuracy of 1. One that misses them all reaches n / (n + 1), 0.98.

    A pure function of `(seed, row)`; for other data, such as for evaluation, take another seed.

    Attributes:
      vocab_size: 11, the separator and padding 0 counted.
    """

    vocab_size = 1 + _SYMBOLS

    def __init__(self, seed: int):
        """Draws from `seed`.

        Raises:
          UserError: `seed` is negative.
        """
        if seed < 0:
            raise UserError(f"the data seed is {seed}: choose one from 0 on.")
        self._seed = seed

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs`, `targets`, `segment_ids` (0 after the second w) and `mask`, int32 [128]."""
        # The raw stream, since it alone stays the same in every version of NumPy; 2^64 is large beside 31 and 10.
        draws = np.random.PCG64((self._seed, row)).random_raw(1 + _LONGEST)
        size = _SHORTEST + int(draws[0] % (_LONGEST - _SHORTEST + 1))
        inputs = np.zeros(_LENGTH, np.int32)
        inputs[:size] = inputs[size + 1 : 2 * size + 1] = 1 + draws[1 : 1 + size] % _SYMBOLS
        place = np.arange(_LENGTH)
        return {
            "inputs": inputs,
            "targets": np.append(inputs[1:], np.int32(0)),
            "segment_ids": (place <= 2 * size).astype(np.int32),
            "mask": ((size - 1 <= place) & (place < 2 * size)).astype(np.int32),
        }
