"""Rows of one example each, of texts or of images: shuffled for training, in order for evaluation."""

import sys
from collections.abc import Mapping

import numpy as np

from transnormer_jax.data.concatenation import Int32s
from transnormer_jax.data.rows import Array
from transnormer_jax.data.shuffle import ShuffledEpochs, permutation
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.examples import Examples

_SEGMENTS = {"inputs": "segment_ids", "inputs_b": "segment_ids_b"}


class ExampleRows:
    """An endless random-access source of padded examples, a pure function of `(seed, row)`.

    Every epoch of `len(examples)` rows holds each example once, in an order of its own.
    """

    def __init__(self, examples: Examples, lengths: Mapping[str, int], seed: int):
        """Shuffles `examples` by `seed` and brings them to `lengths`; see `padded_example`.

        Raises:
          UserError: `lengths` lacks a sequence of the examples, or would cut labels or what they label; there are no
            examples; or `seed` is negative.
        """
        _check(examples, lengths)
        self._examples, self._lengths = examples, lengths
        self._order = ShuffledEpochs(len(examples), seed)

    def __len__(self) -> int:
        return sys.maxsize  # Grain takes indices modulo the length; epochs go on.

    def __getitem__(self, row: int) -> dict[str, Array]:
        """Returns the padded example of a row: int32 [length] or [], of frames float32 [length, F]."""
        return padded_example(self._examples[self._order[row]], self._lengths)


class HeldOutExamples:
    """Every example once, in order, padded; or some of them, from all over the split."""

    def __init__(self, examples: Examples, lengths: Mapping[str, int], count: int | None = None):
        """Takes `count` of the examples, None for all; for `lengths` and errors see `ExampleRows`."""
        _check(examples, lengths)
        self._examples, self._lengths = examples, lengths
        # A split may be sorted, by class or by length.
        self._chosen = np.sort(permutation(len(examples), 0)[:count])

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, row: int) -> dict[str, Array]:
        """Returns the padded example of a row."""
        return padded_example(self._examples[int(self._chosen[row])], self._lengths)


def padded_example(example: Mapping[str, Array], lengths: Mapping[str, int]) -> dict[str, Array]:
    """Returns an example brought to fixed lengths.

    Args:
      example: `inputs`, perhaps `inputs_b`, and `label` or `labels`; see `Examples`.
      lengths: of each sequence by name. A longer one loses its end; a shorter one is padded with zeros on the right.

    Returns:
      The arrays, int32 [length] or float32 [length, F] or int32 [], and `segment_ids` (and `segment_ids_b`), int32
      [length]: 1 for what is real, 0 for padding.
    """
    row: dict[str, Array] = {}
    for name, array in example.items():
        if array.ndim == 0:
            row[name] = array.astype(np.int32)
            continue
        kept = array[: lengths[name]]
        dtype = np.float32 if array.dtype.kind == "f" else np.int32
        row[name] = np.zeros((lengths[name], *array.shape[1:]), dtype)
        row[name][: len(kept)] = kept
        if name in _SEGMENTS:
            row[_SEGMENTS[name]] = (np.arange(lengths[name]) < len(kept)).astype(np.int32)
    return row


def _check(examples: Examples, lengths: Mapping[str, int]) -> None:
    sequences = [name for name in examples.columns if name != "label"]
    for name in sequences:
        if lengths.get(name, 0) < 1:
            raise UserError(f"no length for {name!r}: give one for each of {', '.join(sequences)}.")
        longest = int(examples.columns[name].lengths.max(initial=0))
        # A class of the beginning of a text may still be right; phones of frames that are cut off cannot be.
        if "labels" in sequences and longest > lengths[name]:
            raise UserError(f"{name!r} of length {lengths[name]} would cut an example of {longest}: give {longest}.")


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
