"""`ImageRows`: images as sequences of bytes, each byte predicted from those before it."""

import sys

import numpy as np

from transnormer_jax.data.concatenation import Int32s
from transnormer_jax.data.shuffle import ShuffledEpochs
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.examples import Examples


class ImageRows:
    """An endless random-access source of images of n bytes, shuffled per epoch, a pure function of `(seed, row)`.

    The first byte is given and not predicted, as in "Transformers are RNNs" (arXiv 2006.16236, section 4.2).
    """

    def __init__(self, examples: Examples, seed: int):
        """Shuffles `examples` by `seed`.

        Raises:
          UserError: the examples differ in size or are no bytes, or `seed` is negative.
        """
        self._order = ShuffledEpochs(len(examples), seed)
        lengths = examples.columns["inputs"].lengths
        if examples.vocab_size != 256 or lengths.min() != lengths.max():
            raise UserError("the examples are no images of one size: choose a dataset of images.")
        self._examples = examples

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, row: int) -> dict[str, Int32s]:
        """Returns `inputs` (without the last byte), `targets` (without the first), `segment_ids` (1): int32 [n-1]."""
        image = self._examples[self._order[row]]["inputs"].astype(np.int32)
        return {"inputs": image[:-1], "targets": image[1:], "segment_ids": np.ones(len(image) - 1, np.int32)}
