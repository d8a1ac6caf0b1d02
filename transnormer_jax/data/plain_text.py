"""`PlainText`: a TFDS builder for local text files, with held-out splits that share no document with training."""

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data.text_files import check_document_mode, file_identity, find_files, read_documents
from transnormer_jax.errors import UserError

_SPLITS = ("train", "validation", "test")


@dataclasses.dataclass
class PlainTextConfig(tfds.core.BuilderConfig):
    """Which files, how they divide into documents, and how many are held out; made by `plain_text_config`."""

    files: tuple[str, ...] = ()
    documents: str = "file"
    field: str = "text"
    held_out: float = 0.01


def plain_text_config(
    files: str, documents: str = "file", held_out: float = 0.01, field: str = "text"
) -> PlainTextConfig:
    """Returns the builder config of some text files.

    Its name carries a fingerprint of the paths, sizes and modification times, so that a changed file is a new dataset.

    Args:
      files: paths, directories and patterns, separated by commas; see `text_files.find_files`.
      documents: `"file"`, `"line"` or `"marked"`; see `text_files.read_documents`.
      held_out: the fraction of the documents in each of `validation` and `test`.
      field: of JSON lines and Parquet, what holds the text.

    Raises:
      UserError: no such file or document mode, or `held_out` is not in [0, 0.5).
    """
    check_document_mode(documents)
    if not 0 <= held_out < 0.5:
        raise UserError(f"held_out is {held_out}: choose a fraction from 0 up to, not including, 0.5.")
    found = find_files(files)
    identity = ([file_identity(file) for file in found], documents, held_out, field)
    fingerprint = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return PlainTextConfig(
        name=f"{documents}-{fingerprint}", files=found, documents=documents, held_out=held_out, field=field
    )


class PlainText(tfds.core.GeneratorBasedBuilder):
    """Documents of local files in file order. Feature: `text`. Splits: `train`, `validation`, `test`, if not empty."""

    VERSION = tfds.core.Version("1.0.0")
    builder_config: PlainTextConfig

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        filled = self._filled_splits()
        if not filled:
            raise UserError("the text files hold no document: give files with more than white space in them.")
        return {split: self._generate_examples(split) for split in _SPLITS if split in filled}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for index, text in enumerate(self._documents()):
            if _split_of(text, self.builder_config.held_out) == split:
                yield index, {"text": text}

    def _documents(self) -> Iterator[str]:
        config = self.builder_config
        for file in config.files:
            yield from read_documents(file, config.documents, config.field)

    def _filled_splits(self) -> set[str]:
        # TFDS cannot write a split without examples. Few documents are read before every split has one.
        filled = set[str]()
        for text in self._documents():
            filled.add(_split_of(text, self.builder_config.held_out))
            if len(filled) == len(_SPLITS):
                break
        return filled


def _split_of(text: str, held_out: float) -> str:
    # By content, so that two copies of a document are never on two sides.
    uniform = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
    if uniform < held_out:
        return "validation"
    return "test" if uniform < 2 * held_out else "train"
