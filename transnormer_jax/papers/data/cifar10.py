"""`Cifar10Files`: small photographs from directories of JPEG files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, required

_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SUFFIXES = (".jpg", ".png")


class Cifar10Files(LocalFiles):
    """CIFAR-10 (Krizhevsky, 2009) as TFDS `cifar10`. Features: `image` uint8 [32, 32, 3], `label`, `id`.

    Splits: `train` (50,000) and `test` (10,000). The Long Range Arena trains on `train[:90%]` and validates on
    `train[90%:]`.

    Files: `train/CLASS/*.jpg` and `test/CLASS/*.jpg`, or `.png`. JPEG is lossy: bits per dimension of such images are
    not those of CIFAR-10, and an accuracy on them should say so.
    """

    in_tfds = True

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        splits = {split: _pictures(required(directory, split)) for split in ("train", "test")}
        for split, pictures in splits.items():
            if not pictures:
                raise UserError(
                    f"no {split}/CLASS/*.jpg in {str(directory)!r}: set `files` to a directory with images."
                )
        return splits

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        return {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3), dtype=np.uint8),
            "label": tfds.features.ClassLabel(names=_CLASSES),
        }

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
        for path in files:
            name = "_".join(path.with_suffix("").parts[-3:])
            # The file goes in as it is: decoding comes later, and encoding again would lose more.
            yield name, {"id": name, "image": path, "label": path.parent.name}


DATASETS["cifar10"] = Dataset(Cifar10Files.open, inputs=("image",))


def _pictures(split: Path) -> tuple[Path, ...]:
    folders = [split / name for name in _CLASSES if (split / name).is_dir()]
    # Names are sorted, since sorting 50,000 paths takes seconds.
    return tuple(folder / name for folder in folders for name in sorted(os.listdir(folder)) if name.endswith(_SUFFIXES))
