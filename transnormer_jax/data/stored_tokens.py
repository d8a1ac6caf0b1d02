"""Tokens on an object store: uploaded once by the host that tokenises, copied once per host by all others.

A corpus is in `DATA_DIR/tokenized/HASH`, as on a disk. The small files `DATA_DIR/tokenized/KEY.json` beside it say
which directory holds a source, so a host that finds one needs neither the texts nor a prepared dataset.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from etils import epath

from transnormer_jax import storage
from transnormer_jax.data.config import DataConfig
from transnormer_jax.data.datasets import find_dataset
from transnormer_jax.data.records import open_builder
from transnormer_jax.data.tokenize import Coder
from transnormer_jax.data.tokenized import FORMAT
from transnormer_jax.errors import UserError


def load_stored(config: DataConfig, split: str, coder: Coder, tokenize: Callable[[], Path]) -> tuple[epath.Path, Path]:
    """Returns the directory on the store with the tokens of a split, and its copy on this host.

    Args:
      config: the dataset; its `data_dir` is on a store.
      split: of the dataset.
      coder: of the documents.
      tokenize: makes the tokens on a local disk and returns their directory; called if the store has none.

    Raises:
      UserError: the store cannot be read or written, or `tokenize` raises it.
    """
    tokens = storage.as_path(config.data_dir) / "tokenized"
    keys = _keys(config, split, coder)
    with _explained(tokens):
        found = _find(tokens, keys)
    if found is not None:
        return found, storage.local_copy(found)
    directory = tokenize()
    with _explained(tokens):
        storage.upload(directory, tokens / directory.name, last="manifest.json")
        for key in keys:
            storage.write_text(tokens / f"{key}.json", json.dumps({"directory": directory.name}))
    return tokens / directory.name, directory


def _find(tokens: epath.Path, keys: tuple[str, ...]) -> epath.Path | None:
    record = tokens / f"{keys[0]}.json"
    return tokens / json.loads(record.read_text())["directory"] if record.is_file() else None


def _keys(config: DataConfig, split: str, coder: Coder) -> tuple[str, ...]:
    """Names for a split: first by the files as they are, if they can be seen from here, then by the configuration."""
    dataset = find_dataset(config.dataset)
    corpus = dataset.corpus if dataset else None
    cut = config.held_out if config.documents == "file" else None  # a single file may be cut by it
    named = (config.dataset, config.files, config.documents, cut, config.text_feature)
    # One directory has all splits of a corpus of text.
    own = (FORMAT, "" if corpus else split, coder.fingerprint)
    by_config = _digest("configuration", named, own)
    try:  # What changes when a file does.
        content = corpus(config).fingerprint if corpus else open_builder(config).info.full_name
    except UserError:
        return (by_config,)  # the texts are elsewhere
    return _digest("content", content, config.text_feature, own), by_config


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@contextmanager
def _explained(path: epath.Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any store
        raise UserError(
            f"config.data.data_dir: {str(path)!r} cannot be used ({storage.reason(error)}): {storage.remedy(error)}."
        ) from error
