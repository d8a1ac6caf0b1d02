"""Which corpus and tokenizer, and the tokenised splits they make."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transnormer_jax.data.catalog import CATALOG, find_entry, own_builder
from transnormer_jax.data.chat import ChatTemplate
from transnormer_jax.data.conversations import ConversationMask, ConversationTokens
from transnormer_jax.data.tokenize import Coder, tokenize
from transnormer_jax.data.tokenized import TokenizedDocuments
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_OWN_DATASETS = ("plain_text", "python_source")
_AMOUNTS = ("weight", "epochs")
# Records are compressed in groups: read one by one, each would unpack its whole group.
_BYTES_PER_READ = 1 << 22


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      dataset: `"python_source"`, `"plain_text"`, a name in `catalog.CATALOG` (`"imdb_reviews"`, `"glue/sst2"`,
        `"pathfinder/resolution=128"`), or any TFDS dataset with a text feature (`"lm1b"`, `"wiki40b/en:1.3.0"`).
      files: for `plain_text`: paths, directories, glob patterns and URLs of text, JSON lines and Parquet, parted by
        commas, see `text_files.find_files`. For a dataset of the catalog: the
        directory of its unpacked files, as the docstring of its builder says; empty for TFDS's own copy of it.
      documents: for `plain_text`: `"file"`, `"line"`, `"marked"` or `"conversation"`, see `text_files.read_documents`.
      held_out: for `plain_text`: the fraction of documents in each of `validation` and `test`.
      tokenizer: a name for `load_tokenizer`.
      data_dir: local directory of prepared datasets; empty for TFDS's own (`~/tensorflow_datasets`).
      train_split: a TFDS split, such as `"train"` or `"train[:95%]"`.
      eval_split: a TFDS split.
      text_feature: the feature that holds a document. Of examples, the feature that is the input (text, an image or
        numbers); two, parted by a comma, are a pair. Empty: what the catalog says, else `"text"`.
      label_feature: of examples, the feature that is the label. Empty: what the catalog says, else `"label"`.
      grey: coloured images become grey ones.
      mixture: of text: source -> weight, or source -> a dictionary of any of the fields above but `tokenizer` and
        `data_dir`, with `weight` or `epochs`. Alone, the name is the dataset: {"lm1b": 0.7, "own": {"dataset":
        "plain_text", "files": "*.txt", "weight": 0.3}}. A weight is a share of the tokens; `epochs` says how often
        the source is read while the others are read as often as they say.
    """

    dataset: str = "python_source"
    files: str = ""
    documents: str = "file"
    held_out: float = 0.01
    tokenizer: str = "bytes"
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    text_feature: str = ""
    label_feature: str = ""
    grey: bool = False
    mixture: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Raises UserError where the mixture has no meaning."""
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
        known = {field.name for field in dataclasses.fields(self)} - {"mixture", "tokenizer", "data_dir"}
        for field in fields.keys() - known - set(_AMOUNTS):
            raise UserError(f"unknown config key config.data.mixture.{name}.{field}: {did_you_mean(field, known)}")
        own = {"dataset": name} | {field: value for field, value in fields.items() if field in known}
        return DataConfig(tokenizer=self.tokenizer, data_dir=self.data_dir, **own)

    def amounts(self) -> tuple[str, dict[str, float]]:
        """How much of every source is wanted: ("weight" or "epochs", name -> number).

        Raises:
          UserError: a source has not one positive number, or some have `weight` and some `epochs`.
        """
        amounts = {}
        for name, source in self.mixture.items():
            fields = _source_fields(source)
            given = [kind for kind in _AMOUNTS if kind in fields]
            if len(given) != 1 or not 0 < fields[given[0]] < math.inf:
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
        entry = find_entry(self.dataset)
        return entry.inputs if entry else ("text",)

    @property
    def target_feature(self) -> str:
        """The feature that is the label; empty if there is none."""
        if self.label_feature:
            return self.label_feature
        entry = find_entry(self.dataset)
        return entry.label if entry else "label"


def _source_fields(source: Any) -> dict[str, Any]:
    return dict(source) if isinstance(source, Mapping) else {"weight": source}


def load_split(config: DataConfig, tokenizer: Tokenizer, split: str) -> TokenizedDocuments:
    """Returns a split's documents as tokens; the first call prepares the dataset and tokenises the split on disk.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the documents.
      split: a TFDS split, such as "train[:95%]".

    Raises:
      UserError: the dataset, split or feature does not exist, or cannot be prepared or read here.
    """
    return _tokenized(config, split, tokenizer)


def load_conversations(
    config: DataConfig, tokenizer: Tokenizer, template: ChatTemplate, split: str
) -> tuple[TokenizedDocuments, TokenizedDocuments]:
    """Returns a split's conversations as tokens, and as many numbers that are 1 where the assistant writes.

    The dataset is `"plain_text"` with `documents="conversation"`.

    Args:
      config: the dataset, without a mixture.
      tokenizer: of the conversations.
      template: what stands around the messages.
      split: a TFDS split.

    Raises:
      UserError: as `load_split`, or the template refuses a conversation.
    """
    coders = ConversationTokens(template, tokenizer), ConversationMask(template)
    tokens, mask = (_tokenized(config, split, coder) for coder in coders)
    return tokens, mask


def _tokenized(config: DataConfig, split: str, coder: Coder) -> TokenizedDocuments:
    texts = RecordTexts(config, split)
    return tokenize(texts, coder, texts.tokens_directory(coder))


class RecordTexts:
    """The documents of a split of one source; fulfils `tokenize.Texts`, q.v. for methods and attributes."""

    def __init__(self, config: DataConfig, split: str):
        """Prepares the dataset, if it is not.

        Raises:
          UserError: as `load_split`.
        """
        builder = prepared(config)
        self._source = open_source(builder, config, split)
        self._feature = _text_feature(builder, config)
        self._directory = Path(builder.data_dir) / "tokenized"
        self._identity = fingerprint(builder, split, self._feature)
        info = builder.info
        self.num_bytes = info.dataset_size * len(self._source) // max(1, info.splits.total_num_examples)

    def __len__(self) -> int:
        return len(self._source)

    def read(self, start: int, stop: int) -> Iterator[str]:
        """See `tokenize.Texts`."""
        for records in read_records(self._source, start, stop):
            yield from (as_text(record[self._feature]) for record in records)

    def tokens_directory(self, coder: Coder) -> Path:
        """Where `coder`'s tokens of these documents lie, or will."""
        return self._directory / hashlib.sha256(f"{self._identity} {coder.fingerprint}".encode()).hexdigest()[:16]


def prepared(config: DataConfig) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a dataset that lies prepared on this machine.

    Raises:
      UserError: it does not exist, or cannot be prepared or read here.
    """
    import tensorflow_datasets as tfds

    if "://" in config.data_dir:
        raise UserError(f"data_dir {config.data_dir!r} is remote: choose a local one, since tokens are memory-mapped.")
    builder = _builder(config)
    if not sys.stderr.isatty():  # In a log file each stroke of a progress bar is a line.
        tfds.disable_progress_bar()
    # By default TFDS asks Google's bucket first, which many a cluster cannot reach.
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=download)
    except UserError:
        raise
    except Exception as error:  # A builder is foreign code: no network, no TensorFlow, a manual download missing.
        builder = _builder(config)
        # Unless another process has prepared it meanwhile, and our renaming came second.
        if not builder.data_path.exists():
            elsewhere = f"`tfds build {config.dataset} --file_format=array_record` on another machine and a copy of it"
            local = config.files or config.dataset in _OWN_DATASETS or find_entry(config.dataset)
            mend = "another data_dir, or files that are intact" if local else elsewhere
            raise UserError(
                f"cannot prepare dataset {config.dataset!r} in {builder.data_dir!r} ({_one_line(error)}): try {mend}."
            ) from error
    return builder


def _builder(config: DataConfig) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    data_dir = config.data_dir or None
    if config.dataset == "plain_text":
        from transnormer_jax.data.plain_text import PlainText, plain_text_config

        field = config.text_feature or "text"
        text_config = plain_text_config(config.files, config.documents, config.held_out, field)
        return PlainText(config=text_config, data_dir=data_dir)
    entry = find_entry(config.dataset)
    if entry:
        own = own_builder(entry, config.dataset, config.files, data_dir)
        if own is not None:
            return own
    elif config.files:
        raise UserError(f"dataset {config.dataset!r} reads no `files`: leave them out or set dataset to 'plain_text'.")
    if config.dataset == "python_source":
        from transnormer_jax.data.python_source import PythonSource, python_source_config

        return PythonSource(config=python_source_config(), data_dir=data_dir)
    try:
        return tfds.builder(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = [*_OWN_DATASETS, *CATALOG, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(config.dataset, known, n=1)
        mend = did_you_mean(config.dataset, close or _OWN_DATASETS)
        more = "" if close else " TFDS has more of them where TensorFlow is installed."
        raise UserError(f"TFDS has no dataset {config.dataset!r}: {mend}{more}") from error
    except Exception as error:  # For instance an unknown config of a known dataset.
        raise UserError(f"cannot open dataset {config.dataset!r} ({_one_line(error)}): correct its name.") from error


def open_source(
    builder: "tfds.core.DatasetBuilder", config: DataConfig, split: str
) -> "tfds.core.data_sources.base.BaseDataSource":
    """Returns the records of a split of a prepared dataset.

    Raises:
      UserError: there is no such split, or it is stored in a form that only TensorFlow reads.
    """
    dataset = config.dataset
    if dataset == "plain_text" and split in ("validation", "test") and split not in builder.info.splits:
        raise UserError(
            f"too few documents to hold any out for {split!r}: raise held_out ({config.held_out}), or divide the files "
            f"into more documents than documents={config.documents!r} does."
        )
    try:
        return builder.as_data_source(split)
    except NotImplementedError as error:
        raise UserError(
            f"dataset {dataset!r} in {builder.data_dir!r} is not stored as array_record: prepare it again with "
            f"`tfds build {dataset} --file_format=array_record --overwrite`."
        ) from error
    except (KeyError, ValueError) as error:
        suggestion = did_you_mean(split, builder.info.splits)
        raise UserError(f"dataset {dataset!r} has no split {split!r}: {suggestion}") from error


def read_records(
    source: "tfds.core.data_sources.base.BaseDataSource", start: int = 0, stop: int | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yields the records of a source from `start` to `stop` in order, as lists that take few megabytes."""
    info = source.dataset_info
    records_per_read = max(1, _BYTES_PER_READ * info.splits.total_num_examples // max(1, info.dataset_size))
    for indices in itertools.batched(range(len(source))[start:stop], records_per_read):
        yield source.__getitems__(indices)


def fingerprint(builder: "tfds.core.DatasetBuilder", split: str, *choices: Any) -> str:
    """Returns a name for what is made of a split by some choices, which JSON can hold."""
    contents = {name: (info.num_examples, info.num_bytes) for name, info in sorted(builder.info.splits.items())}
    identity = [builder.info.full_name, contents, split, *choices]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def as_text(value: str | bytes) -> str:
    """Returns a text feature's value as a string."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def _text_feature(builder: "tfds.core.DatasetBuilder", config: DataConfig) -> str:
    import tensorflow_datasets as tfds

    # What holds the text in JSON lines and Parquet is `text` after `PlainText` has read it.
    feature = "text" if config.dataset == "plain_text" else ",".join(config.input_features)
    dataset = config.dataset
    known = [name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in known:
        suggestion = did_you_mean(feature, known) if known else "choose a dataset of text."
        raise UserError(f"dataset {dataset!r} has no text feature {feature!r}: {suggestion}")
    return feature


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
