"""Trains a model, or resumes from the newest checkpoint of its workdir.

    python train.py --config=configs/quickstart.py --workdir=runs/quickstart

Run again, it resumes. Any key of the configuration can be given on the command line:

    python train.py --config=configs/quickstart.py --workdir=runs/short --config.num_steps=200

On a TPU pod and with `srun`, run this same command on every host. Elsewhere, tell each process about the others:

    python train.py --config=... --workdir=... --coordinator=host0:8476 --num_processes=2 --process_id=0
"""

from absl import flags

from transnormer_jax import command
from transnormer_jax.distributed import processes
from transnormer_jax.training import train

_CONFIG = command.define_config_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints and metrics, local or gs://BUCKET/PATH.", required=True
)
_MEMBERSHIP = processes.define_flags()


def main() -> None:
    """Trains."""
    with processes.joined(_MEMBERSHIP()):
        train(command.read_config_flag(_CONFIG), _WORKDIR.value)


if __name__ == "__main__":
    command.run(main)
