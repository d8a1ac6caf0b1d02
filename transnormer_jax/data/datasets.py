"""The datasets known by name. Any other name is TFDS's."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from transnormer_jax.data.corpus import TextFiles
from transnormer_jax.data.python_source import PythonSource
from transnormer_jax.errors import UserError
from transnormer_jax.registry import Registry

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from transnormer_jax.data.config import DataConfig
    from transnormer_jax.data.corpus import Corpus


class Dataset(NamedTuple):
    """How a dataset is opened, and which of its features are used unless the configuration says otherwise.

    Attributes:
      open: `config.data` and the directory of prepared datasets (None: TFDS's own) -> the TFDS builder. It returns None
        for TFDS's own dataset of that name, and raises a UserError if `config.data.files` is not what it needs.
      inputs: the features that are its input; two are a pair.
      label: the feature that is its label.
      corpus: `config.data` -> documents, for a dataset of text that TFDS need not prepare; then `open` is not called.
      held_out: of a corpus: `config.data` -> the fraction of the documents in each split besides `train`.
    """

    open: Callable[["DataConfig", str | None], "tfds.core.DatasetBuilder | None"] = lambda config, data_dir: None
    inputs: tuple[str, ...] = ("text",)
    label: str = "label"
    corpus: Callable[["DataConfig"], "Corpus"] | None = None
    held_out: Callable[["DataConfig"], Mapping[str, float]] = lambda config: {}


DATASETS = Registry[Dataset]("dataset")
"""The datasets, by the names that `config.data.dataset` may have besides TFDS's own."""


def find_dataset(name: str) -> Dataset | None:
    """The dataset of a name, which may have options after a slash; None if it is not known here."""
    family = name.partition("/")[0]
    return next((DATASETS[known] for known in (name, family) if known in DATASETS), None)


def _plain_text(config: "DataConfig") -> "Corpus":
    tokens = f"{config.data_dir}/tokenized" if config.data_dir else ""
    return TextFiles(config.files, config.documents, config.text_feature or "text", config.held_out, tokens)


def _held_out(config: "DataConfig") -> Mapping[str, float]:
    return {"validation": config.held_out, "test": config.held_out}


def _python_source(config: "DataConfig") -> "Corpus":
    check_no_files(config)
    return PythonSource()


def check_no_files(config: "DataConfig") -> None:
    """Raises UserError if `files` is given for a dataset that reads none."""
    if config.files:
        raise UserError(f"dataset {config.dataset!r} reads no `files`: leave them out or set dataset to 'plain_text'.")


DATASETS["plain_text"] = Dataset(corpus=_plain_text, held_out=_held_out)
DATASETS["python_source"] = Dataset(corpus=_python_source, held_out=lambda config: {"validation": 0.05})
