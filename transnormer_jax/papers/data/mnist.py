"""`MnistFiles`: handwritten digits from IDX files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow_datasets as tfds

from transnormer_jax.data import DATASETS, Dataset
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.local_files import LocalFiles, Splits, open_binary, required

_PREFIXES = {"train": "train", "test": "t10k"}


class MnistFiles(LocalFiles):
    """MNIST (LeCun et al., 1998) as TFDS `mnist`. Features: `image` uint8 [28, 28, 1], `label`.

    Splits: `train` (60,000) and `test` (10,000); take `train[:95%]` and `train[95%:]` to hold some out.

    Files: the four IDX files under their own names, `train-images-idx3-ubyte` and so on, plain, `.gz` or `.xz`.
    """

    in_tfds = True

    @staticmethod
    def find(directory: Path, task: str) -> Splits:
        """See `LocalFiles`."""
        kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
        return {
            split: tuple(required(directory, f"{prefix}-{kind}") for kind in kinds)
            for split, prefix in _PREFIXES.items()
        }

    def features(self) -> dict[str, Any]:
        """See `LocalFiles`."""
        image = tfds.features.Image(shape=(28, 28, 1), dtype=np.uint8, encoding_format="png")
        return {"image": image, "label": tfds.features.ClassLabel(num_classes=10)}

    def _generate_examples(self, files: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image  # TFDS encodes arrays with TensorFlow alone.

        images, labels = (read_idx(path) for path in files)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": Image.fromarray(image), "label": int(label)}


DATASETS["mnist"] = Dataset(MnistFiles.open, inputs=("image",))


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Returns the array of an IDX file of bytes: two zeros, type 8, the rank, big-endian int32 sizes, then the bytes.

    Raises:
      UserError: the file is not such a file, or is cut.
    """
    with open_binary(path) as file:
        content = file.read()
    rank = content[3] if content[:3] == b"\0\0\x08" else 0
    shape = np.frombuffer(content[4 : 4 + 4 * rank], ">i4")
    values = np.frombuffer(content[4 + 4 * rank :], np.uint8)
    if not rank or len(shape) < rank or values.size != shape.prod():
        raise UserError(f"{str(path)!r} is no intact IDX file of bytes: replace it with an intact one.")
    return values.reshape(shape)
