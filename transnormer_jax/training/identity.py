"""What a checkpoint and a configuration must have in common: the architecture and the task."""

import dataclasses
import json
from typing import Any

from transnormer_jax.errors import UserError
from transnormer_jax.training.config import FREE_MODEL_FIELDS, INITIAL_MODEL_FIELDS, Config


def model_identity(config: Config) -> dict[str, Any]:
    """The architecture and the task, as plain values."""
    fields = dataclasses.asdict(config.model) | dataclasses.asdict(config.task)
    return json.loads(json.dumps({"architecture": config.architecture, "task": fields.pop("name"), **fields}))


def check_identity(saved: dict[str, Any], config: Config) -> None:
    """Compares what decides which parameters there are and what they mean.

    Args:
      saved: `model_identity` of a checkpoint.
      config: that is to read it.

    Raises:
      UserError: they differ.
    """
    # A field that a checkpoint does not know yet meant what is now its default.
    default = model_identity(Config(config.architecture, type(config.model)(), type(config.task)()))
    for field, value in model_identity(config).items():
        if field in (*FREE_MODEL_FIELDS, *INITIAL_MODEL_FIELDS):
            continue
        found = saved.get(field, default[field])
        if found != value:
            raise UserError(
                f"the workdir holds a model with {field}={found!r}, the config says {value!r}: "
                "use another --workdir or the config of that run."
            )
