"""`MaskedRows`: packed text with some tokens masked, to be predicted from both sides."""

import sys
from collections.abc import Collection

import numpy as np

from transnormer_jax.data.rows import Array, Rows
from transnormer_jax.errors import UserError

_CHOSEN, _MASKED, _RANDOM = 0.15, 0.8, 0.1


class MaskedRows:
    """Rows of text with RoBERTa's masking (Liu et al., 2019), drawn anew for every row, so for every epoch.

    Of the tokens that are not special or padding, 15% are chosen, rounded at random to a whole number. Of these, each
    becomes the mask with probability 0.8, a random token that is not special with 0.1, and stays as it is with 0.1.

    A pure function of `(seed, row)` if `rows` is one.
    """

    def __init__(self, rows: Rows, seed: int, *, mask_id: int, vocab_size: int, special_ids: Collection[int]):
        """Hides tokens of `rows`.

        Args:
          rows: for instance `PackedRows`, of which `inputs` and `segment_ids` are read.
          seed: of what is hidden.
          mask_id: the token that hides another; it may be `vocab_size`, the first id that the tokenizer leaves free.
          vocab_size: random tokens are below it.
          special_ids: tokens that are never chosen nor put in place of others.

        Raises:
          UserError: `seed` is negative, or all tokens are special.
        """
        ordinary = np.setdiff1d(np.arange(vocab_size), [*special_ids, mask_id])
        if seed < 0 or not ordinary.size:
            raise UserError(
                f"data seed {seed}, {ordinary.size} ordinary tokens: choose a seed from 0 on and a vocabulary."
            )
        self._rows, self._seed = rows, seed
        self._mask_id, self._ordinary = mask_id, ordinary
        self._special_ids = np.array([*special_ids, mask_id])

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> dict[str, Array]:
        """Returns `inputs` with tokens hidden, `targets`, `mask` (1 at chosen tokens) and `segment_ids`, int32 [N]."""
        source = self._rows[row]
        targets, segment_ids = source["inputs"], source["segment_ids"]
        size = len(targets)
        # The raw stream, since it alone stays the same in every version of NumPy.
        draws = np.random.PCG64((self._seed, row)).random_raw(1 + 3 * size)
        uniform = draws / 2.0**64
        priority, action = uniform[1 : 1 + size], uniform[1 + size : 1 + 2 * size]
        other = self._ordinary[draws[1 + 2 * size :] % len(self._ordinary)]

        candidates = np.flatnonzero((segment_ids > 0) & ~np.isin(targets, self._special_ids))
        count = int(_CHOSEN * len(candidates) + uniform[0])
        chosen = np.zeros(size, bool)
        chosen[candidates[np.argsort(priority[candidates], kind="stable")[:count]]] = True
        hidden = np.where(action < _MASKED, self._mask_id, np.where(action < _MASKED + _RANDOM, other, targets))
        return {
            "inputs": np.where(chosen, hidden, targets).astype(np.int32),
            "targets": targets,
            "mask": chosen.astype(np.int32),
            "segment_ids": segment_ids,
        }
