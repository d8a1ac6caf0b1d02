"""Trains a model, or resumes from the newest checkpoint of its workdir.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Run again, it resumes. A signal (SIGTERM, Ctrl-C) ends it with a checkpoint and exit status 75. Any key of the
configuration can be given on the command line:

    python train.py --config=configs/quickstart.py --workdir=runs/short --config.num_steps=200

On a TPU pod and with `srun`, run this same command on every host. Elsewhere, tell each process about the others:

    python train.py --config=... --workdir=... --coordinator=host0:8476 --num_processes=2 --process_id=0
"""

import sys

from transnormer_jax import start

if __name__ == "__main__":
    start.begin()  # before the imports that take seconds

from absl import flags

from transnormer_jax import command, config_flag
from transnormer_jax.distributed import processes
from transnormer_jax.distributed.compiler_flags import use_compiler_flags
from transnormer_jax.training import train
from transnormer_jax.training.goodput import process_start_time

_CONFIG = config_flag.define_config_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints and metrics, local or gs://BUCKET/PATH.", required=True
)
_PRINT_PARAMETERS = flags.DEFINE_bool(
    "print_parameters", False, "Print the table of all parameters, which is in parameters.txt in the workdir."
)
_MEMBERSHIP = processes.define_flags()


def main() -> None:
    """Trains."""
    use_compiler_flags()
    with processes.joined(_MEMBERSHIP()):
        config = config_flag.read_config_flag(_CONFIG)
        result = train(config, _WORKDIR.value, began=process_start_time(), print_parameters=_PRINT_PARAMETERS.value)
    if result is None:
        sys.exit(start.STOPPED)


if __name__ == "__main__":
    command.run(main)
