"""Trains a model, or resumes from the newest checkpoint of its workdir.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Run again, it resumes. A signal (SIGTERM, Ctrl-C) ends it with a checkpoint and exit status 75. Any key of the
configuration can be given on the command line:

    python train.py --config=configs/quickstart.py --workdir=runs/short --config.num_steps=200

On a TPU pod and with `srun`, run this same command on every host. Elsewhere, tell each process about the others:

    python train.py --config=... --workdir=... --coordinator=host0:8476 --num_processes=2 --process_id=0
"""

import sys

from absl import flags

from transnormer_jax import command, config_flag, storage
from transnormer_jax.distributed import processes
from transnormer_jax.training import train
from transnormer_jax.training.goodput import process_start_time
from transnormer_jax.training.stop_signal import STOPPED

_CONFIG = config_flag.define_config_flag()
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for checkpoints and metrics.", required=True)
_PRINT_PARAMETERS = flags.DEFINE_bool(
    "print_parameters", False, "Print the table of all parameters, which is in parameters.txt in the workdir."
)
_MEMBERSHIP = processes.define_flags()


def main() -> None:
    """Trains."""
    with processes.joined(_MEMBERSHIP()):
        config, workdir = config_flag.read_config_flag(_CONFIG), storage.as_path(_WORKDIR.value)
        result = train(config, workdir, began=process_start_time(), print_parameters=_PRINT_PARAMETERS.value)
    if result is None:
        sys.exit(STOPPED)


if __name__ == "__main__":
    command.run(main)
