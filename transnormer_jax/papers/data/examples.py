"""`Examples`: a labelled split as dicts of arrays, encoded once and memory-mapped."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.records import fingerprint, open_source, prepared, read_records
from transnormer_jax.data.rows import Array
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError
from transnormer_jax.papers.data.columns import RaggedColumn, open_columns, write_columns
from transnormer_jax.papers.data.encoding import Encoding, frame_statistics
from transnormer_jax.storage import publish

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Examples:
    """A sequence of examples, each a dict of arrays in the memory map.

    `inputs`: ids [n] (uint8, uint16 or uint32) or frames [n, F] float32; `inputs_b`: the second of a pair kept apart;
    `label`: a class, int32 []; or `labels`: classes in a row, int32 [u], as of speech, none of them 0.

    Attributes:
      num_classes: the number of classes; of `labels` with the free class 0.
      vocab_size: one more than the largest id of `inputs`; None if they are frames.
      columns: the arrays by name, with their `lengths`.
    """

    def __init__(self, columns: Mapping[str, RaggedColumn], num_classes: int, vocab_size: int | None):
        """Takes columns of one length; those of `label` are arrays [1]."""
        self.columns = columns
        self.num_classes = num_classes
        self.vocab_size = vocab_size

    def __len__(self) -> int:
        return len(self.columns["inputs"])

    def __getitem__(self, index: int) -> dict[str, Array]:
        """Returns the arrays of an example by name.

        Raises:
          IndexError: there is no such example.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        example = {name: column[index % len(self)] for name, column in self.columns.items()}
        return {name: array.reshape(()) if name == "label" else array for name, array in example.items()}


def load_examples(config: DataConfig, tokenizer: Tokenizer, split: str, *, pair_apart: bool = False) -> Examples:
    """Returns the labelled examples of a split; the first call prepares the dataset and encodes the split on disk.

    Text becomes tokens; an image its bytes, row by row; ids stay as they are; frames of speech are shifted and scaled
    so that each coefficient has mean 0 and variance 1 over `config.train_split`.

    Args:
      config: the dataset, its features, and `grey`.
      tokenizer: for text.
      split: a TFDS split.
      pair_apart: two input features are `inputs` and `inputs_b`; otherwise two texts are one sequence with an end token
        between them.

    Raises:
      UserError: the dataset, split or a feature does not exist, cannot be prepared, or is not what it should be (a
        score, as of `glue/stsb`, is no class); or the split has no labels.
    """
    builder = prepared(config)
    encoding = Encoding(builder.info.features, config, tokenizer, pair_apart)
    source = open_source(builder, config, split)
    train = open_source(builder, config, config.train_split) if encoding.kind == "frames" else None
    identity = [*encoding.identity, config.train_split if train else ""]
    directory = Path(builder.data_dir) / "examples" / fingerprint(builder, split, *identity)

    def write(written: Path) -> None:
        examples = _examples(encoding, source)
        write_columns(_normalised(examples, _examples(encoding, train)) if train else examples, written)
        columns = open_columns(written)
        vocab_sizes = {"text": tokenizer.vocab_size, "image": 256, "frames": None}
        ids = encoding.kind == "ids"
        meta = {
            "num_classes": encoding.num_classes or _count(columns, "label", "labels"),
            "vocab_size": _count(columns, "inputs", "inputs_b") if ids else vocab_sizes[encoding.kind],
        }
        (written / "meta.json").write_text(json.dumps(meta))

    try:
        if not directory.exists():
            publish(directory, write)
    except OSError as error:
        raise UserError(f"cannot write examples to {str(directory)!r} ({error}): choose another data_dir.") from error
    return Examples(open_columns(directory), **json.loads((directory / "meta.json").read_text()))


def _examples(encoding: Encoding, source: "tfds.core.data_sources.base.BaseDataSource") -> Iterator[dict[str, Array]]:
    for records in read_records(source):
        yield from encoding.examples(records)


def _normalised(examples: Iterator[dict[str, Array]], train: Iterator[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    mean, deviation = frame_statistics(example["inputs"] for example in train)
    for example in examples:
        yield {**example, "inputs": ((example["inputs"] - mean) / deviation).astype(np.float32)}


def _count(columns: Mapping[str, RaggedColumn], *names: str) -> int:
    """Returns one more than the largest number in some columns."""
    return 1 + max(int(columns[name].values.max()) for name in names if name in columns)
