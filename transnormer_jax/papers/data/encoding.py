"""`Encoding`: how the records of a TFDS dataset become examples, dicts of arrays."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.datasets import find_dataset
from transnormer_jax.data.records import as_text
from transnormer_jax.data.rows import Array
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

Record = Mapping[str, Any]


class Encoding:
    """The way from the features of a record to `inputs`, perhaps `inputs_b`, and `label` or `labels`.

    Attributes:
      kind: what the input is: `"text"`, `"image"`, `"ids"` or `"frames"`.
      num_classes: as the dataset declares it; None if it does not.
    """

    def __init__(
        self,
        features: "Mapping[str, tfds.features.FeatureConnector]",
        config: DataConfig,
        tokenizer: Tokenizer,
        pair_apart: bool,
    ):
        """Chooses by the kinds of the features.

        Raises:
          UserError: a feature does not exist, or is not of a kind that can be an input or a label.
        """
        self._dataset = config.dataset
        known = find_dataset(config.dataset)
        self._inputs = config.input_features
        self._label = config.label_feature or (known.label if known else "label")
        self._tokenizer, self._grey = tokenizer, config.grey
        self._pair_apart = pair_apart
        for name in (*self._inputs, self._label):
            if name not in features:
                raise UserError(f"dataset {config.dataset!r} has no feature {name!r}: {did_you_mean(name, features)}")
        kinds = {_input_kind(features[name]) for name in self._inputs}
        paired = len(self._inputs) == 2
        if len(kinds) > 1 or not all(kinds) or (paired and not pair_apart and kinds != {"text"}):
            raise UserError(
                f"features {', '.join(self._inputs)} of dataset {config.dataset!r} are no input: choose one, or two of "
                "text, with `text_feature`."
            )
        if len(self._inputs) > 2 or (pair_apart and not paired):
            raise UserError(
                f"text_feature names {len(self._inputs)} features of dataset {config.dataset!r}: a pair has two, "
                "separated by a comma."
            )
        (self.kind,) = kinds
        self.num_classes = _num_classes(features[self._label], self._label, config.dataset)

    @property
    def identity(self) -> list[Any]:
        """What tells this encoding from others of the same dataset, for JSON."""
        return [*self._inputs, self._label, self._grey, self._pair_apart, self._tokenizer.fingerprint]

    def examples(self, records: Sequence[Record]) -> list[dict[str, Array]]:
        """Returns the examples of some records, frames as they were recorded.

        Raises:
          UserError: a label is secret.
        """
        columns = [self._encoded([record[name] for record in records]) for name in self._inputs]
        labels = [np.asarray(record[self._label], np.int32) for record in records]
        if any(label.ndim == 0 and label < 0 for label in labels):
            raise UserError(f"this split of dataset {self._dataset!r} has no labels: choose another one.")
        if len(columns) == 2 and not self._pair_apart:
            end = self._tokens([""])[0]
            columns = [[np.concatenate([a, end, b]) for a, b in zip(*columns, strict=True)]]
        return [
            {
                **dict(zip(("inputs", "inputs_b"), arrays, strict=False)),
                **({"labels": label} if label.ndim else {"label": label[None]}),
            }
            for *arrays, label in zip(*columns, labels, strict=True)
        ]

    def _encoded(self, values: Sequence[Any]) -> list[Array]:
        if self.kind == "text":
            return self._tokens([as_text(value) for value in values])
        arrays = [np.asarray(value) for value in values]
        return [image_bytes(array, self._grey) for array in arrays] if self.kind == "image" else arrays

    def _tokens(self, texts: Sequence[str]) -> list[Array]:
        dtype = np.uint16 if self._tokenizer.vocab_size <= 1 << 16 else np.uint32
        encoded = self._tokenizer.encode_batch(texts)
        # An empty text is its end alone: a row without any token would be padding.
        return [np.asarray(tokens if len(tokens) else [self._tokenizer.eos_id], dtype) for tokens in encoded]


def image_bytes(image: npt.NDArray[np.uint8], grey: bool) -> npt.NDArray[np.uint8]:
    """Returns an image as a row of bytes, uint8 [pixels * channels], from the top left and row by row.

    Args:
      image: uint8 [height, width] or [height, width, channels].
      grey: three channels become 0.2989 R + 0.587 G + 0.114 B. The weights sum to 0.9999; the sum times 255.5 / 255 is
        rounded down, as TensorFlow's `rgb_to_grayscale` does, so that grey stays the grey it was.
    """
    if grey and image.ndim == 3 and image.shape[-1] == 3:
        weighted = image.astype(np.float32) @ np.array([0.2989, 0.587, 0.114], np.float32)
        image = np.floor(weighted * np.float32(255.5 / 255)).astype(np.uint8)
    return image.reshape(-1)


def frame_statistics(utterances: Iterable[Array]) -> tuple[Array, Array]:
    """Returns mean and standard deviation of each coefficient over all frames, float64 [F], of arrays [n, F].

    The deviation of a coefficient that never changes is 1, to divide by.
    """
    frames = np.concatenate(list(utterances)).astype(np.float64)
    mean, deviation = frames.mean(0), frames.std(0)
    return mean, np.where(deviation > 1e-9 * np.abs(mean), deviation, 1.0)


def _input_kind(feature: "tfds.features.FeatureConnector") -> str:
    """Returns a kind of `Encoding`, or "" if the feature can be no input."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Text):
        return "text"
    if isinstance(feature, tfds.features.Image):
        return "image"
    if not isinstance(feature, tfds.features.Tensor) or _letter(feature) not in "uif":
        return ""
    rank = len(feature.shape)
    if _letter(feature) == "f":
        return "frames" if rank == 2 else ""
    return {1: "ids", 2: "image", 3: "image"}.get(rank, "")


def _num_classes(feature: "tfds.features.FeatureConnector", name: str, dataset: str) -> int | None:
    import tensorflow_datasets as tfds

    inner = feature.feature if isinstance(feature, tfds.features.Sequence) else feature
    if isinstance(inner, tfds.features.ClassLabel) and inner.num_classes:
        return inner.num_classes
    if not isinstance(inner, tfds.features.Tensor) or _letter(inner) not in "ui" or len(inner.shape) > 1:
        raise UserError(f"feature {name!r} of dataset {dataset!r} is no class: choose another with `label_feature`.")
    return None


def _letter(feature: "tfds.features.Tensor") -> str:
    """Returns NumPy's letter for unsigned, integer, floating and so on."""
    return np.dtype(feature.np_dtype).kind
