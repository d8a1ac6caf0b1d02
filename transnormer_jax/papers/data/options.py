"""Options of a generated dataset, in its name: `"listops/min_length=50,max_length=200"`."""

import dataclasses
from typing import Any

import tensorflow_datasets as tfds

from transnormer_jax.data import DataConfig
from transnormer_jax.errors import UserError, did_you_mean


def config_from_name[T: tfds.core.BuilderConfig](config: DataConfig, kind: type[T]) -> T:
    """Returns a builder config of a kind, with the options in `config.dataset`.

    Raises:
      UserError: an option is unknown or is not of its default's type, or `config.files` is given.
    """
    dataset = config.dataset
    if config.files:
        raise UserError(f"dataset {dataset!r} is generated: leave `files` empty.")
    of_tfds = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
    known = {field.name: field.default for field in dataclasses.fields(kind) if field.name not in of_tfds}
    options: dict[str, Any] = {}
    for option in filter(None, dataset.partition("/")[2].split(",")):
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
    return kind(**options)
