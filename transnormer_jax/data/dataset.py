"""Which corpus and tokenizer, and the tokenised splits they make."""

import dataclasses
import difflib
import hashlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from transnormer_jax.data.tokenized import TokenizedDocuments, tokenize
from transnormer_jax.data.tokenizers import Tokenizer
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_OWN_DATASETS = ("plain_text", "python_source")
# Records are compressed in groups: read one by one, each would unpack its whole group.
_BYTES_PER_READ = 1 << 22


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train and evaluate on.

    Attributes:
      dataset: `"python_source"`, `"plain_text"`, or any TFDS dataset with a text feature (`"lm1b"`,
        `"wiki40b/en:1.3.0"`).
      files: for `plain_text`: paths, directories and glob patterns, parted by commas.
      documents: for `plain_text`: `"file"`, `"line"` or `"marked"`, see `text_files.read_documents`.
      held_out: for `plain_text`: the fraction of documents in each of `validation` and `test`.
      tokenizer: a name for `load_tokenizer`.
      data_dir: local directory of prepared datasets; empty for TFDS's own (`~/tensorflow_datasets`).
      train_split: a TFDS split, such as `"train"` or `"train[:95%]"`.
      eval_split: a TFDS split.
      text_feature: the feature that holds a document.
    """

    dataset: str = "python_source"
    files: str = ""
    documents: str = "file"
    held_out: float = 0.01
    tokenizer: str = "bytes"
    data_dir: str = ""
    train_split: str = "train"
    eval_split: str = "validation"
    text_feature: str = "text"


def load_split(config: DataConfig, tokenizer: Tokenizer, split: str) -> TokenizedDocuments:
    """Returns a split's documents as tokens; the first call prepares the dataset and tokenises the split on disk.

    Raises:
      UserError: the dataset, split or feature does not exist, or cannot be prepared or read here.
    """
    builder = _prepared(config)
    texts = _texts(_source(builder, config, split), config.text_feature)
    directory = Path(builder.data_dir) / "tokenized" / _fingerprint(builder, config, split, tokenizer)
    return tokenize(texts, tokenizer, directory)


def _prepared(config: DataConfig) -> "tfds.core.DatasetBuilder":
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
            mend = "another data_dir" if config.dataset in _OWN_DATASETS else elsewhere
            raise UserError(
                f"cannot prepare dataset {config.dataset!r} in {builder.data_dir!r} ({_one_line(error)}): try {mend}."
            ) from error
    return builder


def _builder(config: DataConfig) -> "tfds.core.DatasetBuilder":
    import tensorflow_datasets as tfds

    data_dir = config.data_dir or None
    if config.dataset == "plain_text":
        from transnormer_jax.data.plain_text import PlainText, plain_text_config

        text_config = plain_text_config(config.files, config.documents, config.held_out)
        return PlainText(config=text_config, data_dir=data_dir)
    if config.files:
        raise UserError(f"dataset {config.dataset!r} reads no `files`: leave them out or set dataset to 'plain_text'.")
    if config.dataset == "python_source":
        from transnormer_jax.data.python_source import PythonSource, python_source_config

        return PythonSource(config=python_source_config(), data_dir=data_dir)
    try:
        return tfds.builder(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = [*_OWN_DATASETS, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(config.dataset, known, n=1)
        suggestion = did_you_mean(config.dataset, close or _OWN_DATASETS)
        raise UserError(f"TFDS has no dataset {config.dataset!r}: {suggestion}") from error
    except Exception as error:  # For instance an unknown config of a known dataset.
        raise UserError(f"cannot open dataset {config.dataset!r} ({_one_line(error)}): correct its name.") from error


def _source(
    builder: "tfds.core.DatasetBuilder", config: DataConfig, split: str
) -> "tfds.core.data_sources.base.BaseDataSource":
    import tensorflow_datasets as tfds

    dataset, feature = config.dataset, config.text_feature
    known = [name for name, kind in builder.info.features.items() if isinstance(kind, tfds.features.Text)]
    if feature not in known:
        suggestion = did_you_mean(feature, known) if known else "choose a dataset of text."
        raise UserError(f"dataset {dataset!r} has no text feature {feature!r}: {suggestion}")
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


def _texts(source: "tfds.core.data_sources.base.BaseDataSource", feature: str) -> Iterator[str]:
    info = source.dataset_info
    records_per_read = max(1, _BYTES_PER_READ * info.splits.total_num_examples // max(1, info.dataset_size))
    for indices in itertools.batched(range(len(source)), records_per_read):
        for record in source.__getitems__(indices):
            text = record[feature]
            yield text if isinstance(text, str) else text.decode(errors="replace")


def _fingerprint(builder: "tfds.core.DatasetBuilder", config: DataConfig, split: str, tokenizer: Tokenizer) -> str:
    contents = {name: (info.num_examples, info.num_bytes) for name, info in sorted(builder.info.splits.items())}
    identity = [builder.info.full_name, contents, split, config.text_feature, tokenizer.fingerprint]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
