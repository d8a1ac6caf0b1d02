"""The datasets known by name: who builds them, and which of their features are input and label."""

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from transnormer_jax.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Entry(NamedTuple):
    """A dataset.

    Attributes:
      inputs: the features that are its input; two are a pair.
      label: the feature that is its label; empty if it has none.
      local: the module and class in `data.local` that read a directory of it; empty if none does.
      public: TFDS has the dataset under this name.
      generator: the module and class of this package that generate it; empty if it is read.
      generator_config: the function in that module that makes the builder's config from options.
    """

    inputs: tuple[str, ...]
    label: str = "label"
    local: str = ""
    public: bool = True
    generator: str = ""
    generator_config: str = ""


_SENTENCES = ("sentence1", "sentence2")
_QUESTIONS = ("question1", "question2")

CATALOG = {
    "aan": Entry(("text1", "text2"), local="aan:AanFiles", public=False),
    "an4": Entry(("mfcc",), "phones", local="an4:An4Files", public=False),
    "cifar10": Entry(("image",), local="cifar10:Cifar10Files"),
    "imdb_reviews": Entry(("text",), local="imdb:ImdbFiles"),
    "mnist": Entry(("image",), local="mnist:MnistFiles"),
    "wikitext": Entry(("text",), "", local="wikitext:WikiTextFiles", public=False),
    "listops": Entry(("tokens",), generator="listops:ListOps", generator_config="listops:listops_config"),
    "pathfinder": Entry(("image",), generator="pathfinder:Pathfinder", generator_config="pathfinder:pathfinder_config"),
    "glue/cola": Entry(("sentence",), local="glue:GlueFiles"),
    "glue/mrpc": Entry(_SENTENCES, local="glue:GlueFiles"),
    "glue/qnli": Entry(("question", "sentence"), local="glue:GlueFiles"),
    "glue/qqp": Entry(_QUESTIONS, local="glue:GlueFiles"),
    "glue/rte": Entry(_SENTENCES, local="glue:GlueFiles"),
    "glue/sst2": Entry(("sentence",), local="glue:GlueFiles"),
    "glue/stsb": Entry(_SENTENCES, local="glue:GlueFiles"),
    "glue/wnli": Entry(_SENTENCES, local="glue:GlueFiles"),
}


def find_entry(dataset: str) -> Entry | None:
    """Returns the entry of a dataset, whose name may bear options if it is generated; None if there is no entry."""
    name, _, _ = dataset.partition("/")
    if name in CATALOG and CATALOG[name].generator:
        return CATALOG[name]
    return CATALOG.get(dataset)


def own_builder(entry: Entry, dataset: str, files: str, data_dir: str | None) -> "tfds.core.DatasetBuilder | None":
    """Returns this package's builder of a dataset of the catalog, or None if it is TFDS's to build.

    Args:
      entry: of the dataset.
      dataset: its name; for a generated one perhaps with options of its config, as TFDS writes them:
        `"listops/min_length=50,max_length=200"`.
      files: the directory of the unpacked dataset, or empty.
      data_dir: where TFDS keeps prepared datasets, or None.

    Raises:
      UserError: the dataset lies in no public place and `files` is empty; `files` is not the dataset, or is given for a
        generated one; or an option is wrong.
    """
    if entry.generator:
        if files:
            raise UserError(f"dataset {dataset!r} is generated: leave `files` empty.")
        make_config = _load(entry.generator_config)
        return _load(entry.generator)(config=make_config(**_options(dataset, make_config)), data_dir=data_dir)
    if files:
        return _load(f"local.{entry.local}").at(dataset, files, data_dir)
    if not entry.public:
        raise UserError(f"dataset {dataset!r} is not in TFDS: set `files` to the directory with its unpacked files.")
    return None


def _options(dataset: str, make_config: Callable) -> dict[str, int | str | bool]:
    _, _, text = dataset.partition("/")
    known = {name: parameter.default for name, parameter in inspect.signature(make_config).parameters.items()}
    options: dict[str, int | str | bool] = {}
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name not in known:
            raise UserError(f"dataset {dataset!r} has no option {name!r}: {did_you_mean(name, known)}")
        parsed: int | str | bool = value
        if value in ("True", "False"):
            parsed = value == "True"
        elif value.removeprefix("-").isdecimal():
            parsed = int(value)
        if known[name] is not None and type(parsed) is not type(known[name]):
            raise UserError(
                f"option {name!r} of dataset {dataset!r} is {value!r}: give a value like {known[name]!r}, its default."
            )
        options[name] = parsed
    return options


def _load(name: str) -> Any:
    # Imported at its first use: whoever reads text needs no TFDS and no Pillow.
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"transnormer_jax.data.{module}"), attribute)
