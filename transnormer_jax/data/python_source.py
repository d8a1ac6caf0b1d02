"""`PythonSource`: a TFDS builder for the source of Python's standard library, a real corpus that needs no network."""

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

_HELD_OUT = 0.05
_LEFT_OUT = {
    # Not the standard library.
    "site-packages", "dist-packages", "__pycache__",
    # Tests outweigh the library they test, and some are wrong on purpose.
    "test", "tests", "idle_test",
    # Gone from Python 3.13; without it the versions are alike.
    "lib2to3",
    # Generated tables of code points and of help pages.
    "encodings", "pydoc_data",
}  # fmt: skip


def python_source_config() -> tfds.core.BuilderConfig:
    """Returns the builder config of the running Python; its name is the version, such as `"3.12.1"`."""
    return tfds.core.BuilderConfig(name=platform.python_version())


class PythonSource(tfds.core.GeneratorBasedBuilder):
    """One document per module. Features: `text`, `path`. Splits: `train`, and `validation` (5% of the paths)."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "path": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        for index, (path, text) in enumerate(_modules()):
            if _split_of(path) == split:
                yield index, {"text": text, "path": path}


def _modules() -> Iterator[tuple[str, str]]:
    library = Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(library) for path in library.rglob("*.py"))
    for path in paths:
        # `_sysconfigdata*` is generated too, and full of one machine's paths.
        if _LEFT_OUT.isdisjoint(path.parts) and not path.name.startswith("_sysconfigdata"):
            text = _decoded((library / path).read_bytes())
            if text.strip():
                yield path.as_posix(), text


def _decoded(source: bytes) -> str:
    try:
        return source.decode("utf-8")
    except UnicodeDecodeError:
        return ""  # The few files in another encoding are left out, like the empty ones.


def _split_of(path: str) -> str:
    uniform = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) / 2**64
    return "validation" if uniform < _HELD_OUT else "train"
