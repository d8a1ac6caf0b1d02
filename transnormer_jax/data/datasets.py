"""The datasets known by name. Any other name is TFDS's."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from transnormer_jax.errors import UserError
from transnormer_jax.registry import Registry

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

    from transnormer_jax.data.config import DataConfig


class Dataset(NamedTuple):
    """How a dataset is opened, and which of its features are used unless the configuration says otherwise.

    Attributes:
      open: `config.data` and the directory of prepared datasets (None: TFDS's own) -> the TFDS builder. It returns None
        for TFDS's own dataset of that name, and raises a UserError if `config.data.files` is not what it needs.
      inputs: the features that are its input; two are a pair.
      label: the feature that is its label.
    """

    open: Callable[["DataConfig", str | None], "tfds.core.DatasetBuilder | None"]
    inputs: tuple[str, ...] = ("text",)
    label: str = "label"


DATASETS = Registry[Dataset]("dataset")
"""The datasets, by the names that `config.data.dataset` may have besides TFDS's own."""


def find_dataset(name: str) -> Dataset | None:
    """The dataset of a name, which may have options after a slash; None if it is not known here."""
    family = name.partition("/")[0]
    return next((DATASETS[known] for known in (name, family) if known in DATASETS), None)


# TFDS is imported when a dataset is opened.
def _plain_text(config: "DataConfig", data_dir: str | None) -> "tfds.core.DatasetBuilder":
    from transnormer_jax.data.plain_text import PlainText, plain_text_config

    text_config = plain_text_config(config.files, config.documents, config.held_out, config.text_feature or "text")
    return PlainText(config=text_config, data_dir=data_dir)


def _python_source(config: "DataConfig", data_dir: str | None) -> "tfds.core.DatasetBuilder":
    from transnormer_jax.data.python_source import PythonSource, python_source_config

    check_no_files(config)
    return PythonSource(config=python_source_config(), data_dir=data_dir)


def check_no_files(config: "DataConfig") -> None:
    """Raises UserError if `files` is given for a dataset that reads none."""
    if config.files:
        raise UserError(f"dataset {config.dataset!r} reads no `files`: leave them out or set dataset to 'plain_text'.")


DATASETS["plain_text"] = Dataset(_plain_text)
DATASETS["python_source"] = Dataset(_python_source)
