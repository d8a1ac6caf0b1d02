"""TFDS datasets on this machine: prepared at their first use, then read record by record."""

import difflib
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transnormer_jax import storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.datasets import DATASETS, check_no_files, find_dataset
from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Records are compressed in groups: read one by one, each would unpack its whole group.
_BYTES_PER_READ = 1 << 22


def prepared(config: DataConfig) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a dataset, which is prepared on this machine if it is not yet.

    Raises:
      UserError: it does not exist, or cannot be prepared or read here.
    """
    import tensorflow_datasets as tfds

    builder = open_builder(config)
    if not sys.stderr.isatty():  # In a log file each stroke of a progress bar is a line.
        tfds.disable_progress_bar()
    # By default TFDS asks Google's bucket first, which many a cluster cannot reach.
    download = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        builder.download_and_prepare(file_format="array_record", download_config=download)
    except UserError:
        raise
    except Exception as error:  # A builder is foreign code: no network, no TensorFlow, a manual download missing.
        builder = open_builder(config)
        # Unless another process has prepared it meanwhile, and our renaming came second.
        if not builder.data_path.exists():
            elsewhere = f"`tfds build {config.dataset} --file_format=array_record` on another machine and a copy of it"
            mend = "another data_dir, or files that are intact" if find_dataset(config.dataset) else elsewhere
            raise UserError(
                f"cannot prepare dataset {config.dataset!r} in {builder.data_dir!r} ({_one_line(error)}): try {mend}."
            ) from error
    return builder


def open_builder(config: DataConfig) -> "tfds.core.DatasetBuilder":
    """Returns the builder of a dataset, prepared or not; of one on a store, that of its copy on this host.

    Raises:
      UserError: it does not exist.
    """
    import tensorflow_datasets as tfds

    data_dir = str(local_data_dir(config)) if config.data_dir else None
    dataset = find_dataset(config.dataset)
    if dataset is not None:
        builder = dataset.open(config, data_dir)
        if builder is not None:
            return builder
    check_no_files(config)
    try:
        return tfds.builder(config.dataset, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = [*DATASETS, *tfds.list_builders(with_community_datasets=False)]
        close = difflib.get_close_matches(config.dataset, known, n=1)
        mend = did_you_mean(config.dataset, close or ("plain_text", "python_source"))
        more = "" if close else " TFDS offers more datasets if TensorFlow is installed."
        raise UserError(f"TFDS has no dataset {config.dataset!r}: {mend}{more}") from error
    except Exception as error:  # For instance an unknown config of a known dataset.
        raise UserError(f"cannot open dataset {config.dataset!r} ({_one_line(error)}): correct its name.") from error


def local_data_dir(config: DataConfig) -> Path:
    """The directory of prepared datasets; for one on a store, that of this host."""
    if storage.is_remote(config.data_dir):  # tokens and records are mapped into memory
        return storage.cache_directory() / "datasets"
    return Path(config.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def open_source(
    builder: "tfds.core.DatasetBuilder", config: DataConfig, split: str
) -> "tfds.core.data_sources.base.BaseDataSource":
    """Returns the records of a split of a prepared dataset.

    Raises:
      UserError: there is no such split, or it is stored in a form that only TensorFlow reads.
    """
    dataset = config.dataset
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


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
