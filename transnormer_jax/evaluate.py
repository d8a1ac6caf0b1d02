"""Evaluates the newest checkpoint of a run on a whole held-out split.

    python eval.py --config=configs/quickstart.py --workdir=runs/quickstart

The last line of the output is JSON, which is also written to eval.json in the workdir. Architecture, task and tokenizer
are those of the run; the dataset is that of --config, or that of the run if --config is left out.
"""

import json

from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.distributed import processes
from transnormer_jax.training import evaluate_run

_CONFIG = command.define_config_flag(required=False)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
_SPLIT = flags.DEFINE_string("split", "", "Split to evaluate on; the configuration's data.eval_split if empty.")
_MEMBERSHIP = processes.define_flags()


def main() -> None:
    """Evaluates."""
    config = command.read_config_flag(_CONFIG) if _CONFIG.value else None
    with processes.joined(_MEMBERSHIP()):
        print(json.dumps(evaluate_run(storage.as_path(_WORKDIR.value), config, _SPLIT.value)))


if __name__ == "__main__":
    command.run(main)
