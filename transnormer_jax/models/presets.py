"""What the configurations of models share: they are made from plain values, and some have names."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from transnormer_jax.errors import UserError, did_you_mean


def from_fields[Config](cls: type[Config], fields: Mapping[str, Any]) -> Config:
    """A dataclass from plain values, such as those of a JSON file.

    Raises:
      UserError: a field is unknown.
    """
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in fields:
        if name not in known:
            raise UserError(f"unknown model field {name!r}: {did_you_mean(name, known)}")
    return cls(**fields)


def from_preset[Config](
    cls: type[Config], presets: Mapping[str, Mapping[str, Any]], name: str, overrides: Mapping[str, Any]
) -> Config:
    """A dataclass from named values, some of them replaced.

    Raises:
      UserError: the name or a field is unknown.
    """
    if name not in presets:
        raise UserError(f"unknown preset {name!r}: {did_you_mean(name, presets)}")
    return from_fields(cls, {**presets[name], **overrides})
