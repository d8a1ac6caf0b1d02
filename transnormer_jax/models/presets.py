"""What the configurations of models share: some have names, and their fields are checked alike."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from transnormer_jax.errors import UserError, did_you_mean

_DTYPES = ("bfloat16", "float16", "float32")


def from_preset[Config](
    cls: type[Config], presets: Mapping[str, Mapping[str, Any]], name: str, overrides: Mapping[str, Any]
) -> Config:
    """A dataclass from named values, some of them replaced.

    Raises:
      UserError: the name or a field is unknown.
    """
    if name not in presets:
        raise UserError(f"unknown preset {name!r}: {did_you_mean(name, presets)}")
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for field in overrides:
        if field not in known:
            raise UserError(f"unknown model field {field!r}: {did_you_mean(field, known)}")
    return cls(**{**presets[name], **overrides})


def check_fields(config: Any, choices: Mapping[str, Collection[str]], *, may_be_zero: Collection[str] = ()) -> None:
    """Checks what can be seen of each field of a configuration alone: numbers, words, dtypes and dropout.

    Args:
      choices: field -> the words that it may be.
      may_be_zero: whole numbers that may be 0; the others are sizes or counts of at least 1.

    Raises:
      UserError: a field is out of its range.
    """
    choices = {**choices, "dtype": _DTYPES, "param_dtype": _DTYPES}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in choices and value not in choices[field.name]:
            raise UserError(f"unknown {field.name} {value!r}: {did_you_mean(str(value), choices[field.name])}")
        least = 0 if field.name in may_be_zero else 1
        if field.type is int and (not isinstance(value, int) or value < least):
            raise UserError(f"{field.name}={value!r} must be a whole number, {least} or more.")
        if field.type is float and not 0 <= value < math.inf:
            raise UserError(f"{field.name}={value} must be at least 0.")
        if field.name == "dropout" and not 0 <= value < 1:
            raise UserError(f"dropout={value} must be at least 0 and less than 1.")
