"""Trains a language model.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Run again, it resumes from the newest checkpoint. Any key of the configuration can be given on the command line:

    python train.py --config=configs/quickstart.py --workdir=runs/short --config.num_steps=200
"""

from pathlib import Path

from absl import flags

from transnormer_jax import command
from transnormer_jax.training import train

_CONFIG = command.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and metrics.", required=True)


def main() -> None:
    """Trains."""
    train(command.read_config_flag(_CONFIG), Path(_WORKDIR.value))


if __name__ == "__main__":
    command.run(main)
