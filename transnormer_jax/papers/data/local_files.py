"""Local files of the builders: plain or compressed, with a name that changes with them, and tab-separated tables."""

import abc
import dataclasses
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import tensorflow_datasets as tfds

from transnormer_jax.data import DataConfig
from transnormer_jax.errors import UserError

Splits = dict[str, tuple[Path, ...]]

_OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


@dataclasses.dataclass
class LocalConfig(tfds.core.BuilderConfig):
    """Where each dataset of a family is; made by `LocalFiles.at`.

    Attributes:
      task: the part of the dataset's name after the slash, such as `"sst2"`, or "".
      splits: the files of each split.
    """

    task: str = ""
    # TFDS prints new configs; a dataset may have 60,000 files.
    splits: Splits = dataclasses.field(default_factory=dict, repr=False)


class LocalFiles(tfds.core.GeneratorBasedBuilder):
    """A dataset read from a directory. TFDS shuffles its examples once, so `train[:90%]` is a fair share of `train`."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: LocalConfig
    # Whether TFDS has the dataset under the same name, for those who give no directory.
    in_tfds: ClassVar[bool] = False

    @classmethod
    def open(cls, config: DataConfig, data_dir: str | None) -> "LocalFiles | None":
        """Returns the builder for a configuration, or None for TFDS's own dataset; see `data.Dataset`."""
        if config.files:
            return cls.at(config.dataset, config.files, data_dir)
        if cls.in_tfds:
            return None
        raise UserError(
            f"dataset {config.dataset!r} is not in TFDS: set `files` to the directory with its unpacked files."
        )

    @classmethod
    def at(cls, dataset: str, files: str, data_dir: str | None) -> "LocalFiles":
        """Returns the builder of `dataset` in the directory `files`, to be prepared under `data_dir`.

        Its config's name carries a fingerprint of names, sizes and modification times: changed files are a new dataset.

        Raises:
          UserError: `files` is no directory, or lacks what the dataset needs.
        """
        directory = Path(files).expanduser().resolve()
        if not directory.is_dir():
            raise UserError(f"dataset {dataset!r} needs its files unpacked: set `files` to a directory, not {files!r}.")
        _, _, task = dataset.partition("/")
        splits = cls.find(directory, task)
        if not splits:
            raise UserError(f"no file of dataset {dataset!r} in {files!r}: set `files` to the directory that holds it.")
        paths = {split: [(path.name, *_stat(path)) for path in paths] for split, paths in splits.items()}
        fingerprint = hashlib.sha256(repr(paths).encode()).hexdigest()[:16]
        name = f"{task}-{fingerprint}" if task else fingerprint
        return cls(config=LocalConfig(name=name, task=task, splits=splits), data_dir=data_dir)

    @staticmethod
    @abc.abstractmethod
    def find(directory: Path, task: str) -> Splits:
        """Returns the files of each split that the directory has.

        Raises:
          UserError: a file that a split cannot do without is missing.
        """

    @abc.abstractmethod
    def features(self) -> dict[str, Any]:
        """Returns the features by name."""

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(self.features()))

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[Any]]:
        del dl_manager
        return {split: self._generate_examples(files) for split, files in self.builder_config.splits.items()}


def first_existing(directory: Path, *names: str) -> Path | None:
    """Returns the first of some files, plain, `.gz` or `.xz`, in a directory or one below it; None if none is there."""
    for place in (directory, *sorted(child for child in directory.iterdir() if child.is_dir())):
        for name in names:
            for suffix in ("", ".gz", ".xz"):
                if (place / (name + suffix)).exists():
                    return place / (name + suffix)
    return None


def required(directory: Path, *names: str) -> Path:
    """Returns `first_existing`, or raises a `UserError` that names the first one."""
    path = first_existing(directory, *names)
    if path is None:
        raise UserError(f"no {names[0]!r} in {str(directory)!r}: set `files` to the directory that holds it.")
    return path


def open_binary(path: Path) -> IO[bytes]:
    """Opens a file for reading, unpacked on the way if its name ends in `.gz` or `.xz`."""
    return _OPENERS.get(path.suffix, open)(path, "rb")


def _stat(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def read_rows(path: Path) -> Iterator[list[str]]:
    """Yields the rows of a UTF-8 file, plain or compressed, with as many fields as most of the first rows have.

    A damaged row, one with another number of fields, is left out, as the public builders do.

    Raises:
      UserError: more than one row in a hundred is damaged.
    """
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="\n") as lines:
        rows = (line.rstrip("\r\n").split("\t") for line in lines)
        first = [row for row, _ in zip(rows, range(100), strict=False)]
    widths = [len(row) for row in first]
    width = max(set(widths), key=widths.count, default=0)
    total = damaged = 0
    with io.TextIOWrapper(open_binary(path), "utf-8-sig", newline="\n") as lines:
        for line in lines:
            row = line.rstrip("\r\n").split("\t")
            total += 1
            if len(row) == width:
                yield row
            else:
                damaged += 1
    if 100 * damaged > total:
        raise UserError(f"{damaged} of {total} rows of {str(path)!r} have not {width} fields: give an intact file.")
