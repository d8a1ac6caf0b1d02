"""The configuration of a run as a config file: `--config=.../run_config.py:WORKDIR`."""

import dataclasses

from ml_collections import ConfigDict

from transnormer_jax import storage
from transnormer_jax.training.workdir import read_config


def get_config(workdir: str) -> ConfigDict:
    """Every key with the value with which the run was last started.

    Raises:
      UserError: the workdir holds no run.
    """
    return ConfigDict(dataclasses.asdict(read_config(storage.as_path(workdir))))
