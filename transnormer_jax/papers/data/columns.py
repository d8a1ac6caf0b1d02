"""Columns of arrays on disk, memory-mapped: an array per example, whose first axis may vary."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.rows import Array


class RaggedColumn:
    """Arrays laid end to end: array i is `values[offsets[i] : offsets[i + 1]]`.

    Attributes:
      values: [sum of lengths, ...].
      lengths: int64 [arrays], the first axis of each.
    """

    def __init__(self, values: Array, offsets: npt.NDArray[np.int64]):
        """Takes `values`, [sum of lengths, ...], and `offsets`, int64 [arrays + 1]."""
        self.values = values
        self._offsets = offsets
        self.lengths: npt.NDArray[np.int64] = np.diff(offsets)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Array:
        return self.values[self._offsets[index] : self._offsets[index + 1]]


def write_columns(examples: Iterable[Mapping[str, Array]], directory: Path) -> None:
    """Writes dicts of arrays into a directory, one column per key.

    All examples have the same keys, dtypes, and shapes but for the first axis.
    """
    files: dict[str, IO[bytes]] = {}
    lengths: dict[str, list[int]] = {}
    kinds: dict[str, Array] = {}
    with ExitStack() as opened:
        for example in examples:
            for name, array in example.items():
                if name not in files:
                    files[name] = opened.enter_context(open(directory / f"{name}.bin", "wb"))
                    lengths[name] = []
                    kinds[name] = np.empty((0, *array.shape[1:]), array.dtype)
                files[name].write(array.tobytes())
                lengths[name].append(len(array))
    for name, kind in kinds.items():
        np.save(directory / f"{name}.offsets.npy", np.cumsum([0, *lengths[name]], dtype=np.int64))
        np.save(directory / f"{name}.kind.npy", kind)


def open_columns(directory: Path) -> dict[str, RaggedColumn]:
    """Returns the columns of a directory by name."""
    columns = {}
    for path in sorted(directory.glob("*.kind.npy")):
        name = path.name.removesuffix(".kind.npy")
        kind, offsets = np.load(path), np.load(directory / f"{name}.offsets.npy")
        # A plain view: slices of np.memmap itself cost microseconds each.
        values = np.asarray(np.memmap(directory / f"{name}.bin", kind.dtype, mode="r"))
        columns[name] = RaggedColumn(values.reshape(-1, *kind.shape[1:]), offsets)
    return columns
