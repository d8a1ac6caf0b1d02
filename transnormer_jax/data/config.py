"""Which corpus and which tokenizer: the part of a configuration that is about data."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from transnormer_jax.data.datasets import find_dataset
from transnormer_jax.errors import UserError, did_you_mean

_BAD_RECORDS = ("stop", "skip")
_AMOUNTS = ("weight", "epochs")
# Fields of a whole run, which a source of a mixture shares with the others.
_SHARED = ("mixture", "bad_records", "tokenizer", "data_dir", "read_threads", "read_ahead")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      dataset: `"python_source"`, `"plain_text"`, a dataset that this package reads or generates (`"imdb_reviews"`,
        `"glue/sst2"`, `"pathfinder/resolution=128"`), or any TFDS dataset with a text feature (`"lm1b"`, which needs
        TensorFlow installed).
      files: for `plain_text`: paths, directories, glob patterns and URLs of text, JSON lines, JSON and Parquet,
        separated by commas. For `imdb_reviews` and the like: the directory of the unpacked dataset; empty for TFDS's
        own copy.
      documents: for `plain_text`: what one document is: a `"file"`, a `"line"`, a `"paragraph"` (the text between blank
        lines), the text between marker lines (`"delimited"`), or a `"chunk"` (about 64 KiB of a file, up to the end of
        a line). A record of JSON or Parquet is a document, whose messages are read with `"conversation"`.
      held_out: for `plain_text`: the fraction of documents in each of `validation` and `test`, at least 0 and less than
        0.5; at least one document of two different ones or more is held out, unless it is 0. If there is one document,
        a file, its end is held out. Another fraction of several documents needs no other tokens.
      bad_records: for `plain_text`: what is done about records of JSON and Parquet that do not parse, have no text, or
        are no conversation: `"stop"` lists the first ten once all text has been tokenised; `"skip"` leaves them out. No
        record is checked again in text that has been tokenised.
      tokenizer: `"bytes"`; or a path or URL: a `tokenizer.json` (Hugging Face), a `.model` (SentencePiece), or a
        directory with one of them or with GPT-2's `vocab.json` and `merges.txt`.
      data_dir: directory of prepared datasets; empty for TFDS's own (`~/tensorflow_datasets`). On a store (`gs://`,
        `s3://`), the tokens of text, of which every host makes a local copy.
      train_split: a TFDS split, such as `"train"` or `"train[:95%]"`.
      eval_split: a TFDS split.
      text_feature: the feature that holds a document. For labelled examples, the feature that is the input (text, an
        image or numbers); two, separated by a comma, are a pair. Empty: the dataset's usual one, otherwise `"text"`.
      label_feature: for labelled examples, the feature that is the label. Empty: the dataset's usual one, otherwise
        `"label"`.
      grey: convert colour images to grey.
      read_threads: threads per process that read batches ahead of the step; 0 reads each batch when it is due. More
        than one rarely helps where rows are cheap: threads contend for Python's lock.
      read_ahead: batches that the threads may read ahead of the step.
      mixture: for text: source -> weight, or source -> a dictionary of any of the fields above except `bad_records`,
        `tokenizer`, `data_dir`, `read_threads` and `read_ahead`, with `weight` or `epochs`. Without `dataset`, the
        source's name is the dataset: {"lm1b": 0.7, "own": {"dataset": "plain_text", "files": "*.txt", "weight": 0.3}}.
        A weight is a share of the tokens; `epochs` is the number of times that a source is read while each of the
        others is read as often as its own `epochs` says.
    """

    dataset: str = "python_source"
    files: str = ""
    documents: str = "file"
    held_out: float = 0.01
    bad_records: str = "stop"
    tokenizer: str = "bytes"
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    text_feature: str = ""
    label_feature: str = ""
    grey: bool = False
    read_threads: int = 1
    read_ahead: int = 8
    mixture: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raises UserError where the mixture has no meaning."""
        if self.documents == "marked":  # in runs from before 2026-12-01
            object.__setattr__(self, "documents", "delimited")
        if not 0 <= self.held_out < 0.5:
            raise UserError(f"config.data.held_out={self.held_out} must be at least 0 and less than 0.5.")
        if self.bad_records not in _BAD_RECORDS:
            raise UserError(f"config.data.bad_records={self.bad_records!r} must be 'stop' or 'skip'.")
        if self.read_threads < 0:
            raise UserError(f"config.data.read_threads={self.read_threads} must be at least 0.")
        if self.read_ahead < max(1, self.read_threads):
            raise UserError(
                f"config.data.read_ahead={self.read_ahead} must be at least 1, and at least config.data.read_threads="
                f"{self.read_threads}."
            )
        self.sources()
        self.amounts()

    def sources(self) -> "dict[str, DataConfig]":
        """The configuration of each dataset of the mixture by name; without a mixture, this one by its dataset's.

        Raises:
          UserError: a source has an unknown field, or one that belongs to the whole mixture.
        """
        if not self.mixture:
            return {self.dataset: self}
        return {name: self._source(name) for name in self.mixture}

    def _source(self, name: str) -> "DataConfig":
        fields = _source_fields(self.mixture[name])
        known = {field.name for field in dataclasses.fields(self)} - set(_SHARED)
        for field in fields.keys() - known - set(_AMOUNTS):
            raise UserError(
                f"unknown config key config.data.mixture.{name}.{field}: {did_you_mean(field, known | set(_AMOUNTS))}"
            )
        own = {"dataset": name} | {field: value for field, value in fields.items() if field in known}
        return DataConfig(bad_records=self.bad_records, tokenizer=self.tokenizer, data_dir=self.data_dir, **own)

    def amounts(self) -> tuple[str, dict[str, float]]:
        """How much of every source is wanted: ("weight" or "epochs", name -> number).

        Raises:
          UserError: a source has not one positive number, or some have `weight` and some `epochs`.
        """
        amounts = {}
        for name, source in self.mixture.items():
            fields = _source_fields(source)
            given = [kind for kind in _AMOUNTS if kind in fields]
            if len(given) != 1 or not _is_amount(fields[given[0]]):
                raise UserError(
                    f"source {name!r} of the mixture needs one positive number, its `weight` or its `epochs`: "
                    "give it, or leave the source out."
                )
            amounts[name] = (given[0], float(fields[given[0]]))
        kinds = {kind for kind, _ in amounts.values()} or {"weight"}
        if len(kinds) > 1:
            raise UserError("some sources of the mixture have `weight` and some `epochs`: give all of them the same.")
        return kinds.pop(), {name: amount for name, (_, amount) in amounts.items()}

    @property
    def input_features(self) -> tuple[str, ...]:
        """The features that are the input."""
        if self.text_feature:
            return tuple(name.strip() for name in self.text_feature.split(","))
        dataset = find_dataset(self.dataset)
        return dataset.inputs if dataset else ("text",)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf


def _source_fields(source: Any) -> dict[str, Any]:
    return dict(source) if isinstance(source, Mapping) else {"weight": source}
