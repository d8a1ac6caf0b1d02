"""Evaluates the newest checkpoint of a run, or another, on a whole held-out split.

    python eval.py --workdir=runs/quickstart
    python eval.py --workdir=runs/quickstart --step=best --config.evaluation.max_tokens=100000

The last line of the output is JSON, which is also written to eval.json in the workdir. Architecture, task and tokenizer
are those of the run; the dataset is that of --config, or that of the run if --config is left out. The run's mesh is
used if it fits the devices that are found, otherwise another is chosen; --config.mesh.KEY=N asks for one.
"""

import json

from absl import flags

from transnormer_jax import command
from transnormer_jax.distributed import processes
from transnormer_jax.run_flags import define_run_flags
from transnormer_jax.training import evaluate_run

_RUN = define_run_flags("Directory of the run.", config_file=True)
_SPLIT = flags.DEFINE_string("split", "", "Split to evaluate on; the configuration's data.eval_split if empty.")
_MEMBERSHIP = processes.define_flags()


def main() -> None:
    """Evaluates."""
    config, overrides = _RUN.config, _RUN.overrides
    asks_for_mesh = any(key.startswith("mesh.") for key in overrides)
    with processes.joined(_MEMBERSHIP()):
        report = evaluate_run(
            _RUN.workdir,
            config,
            _SPLIT.value,
            step=_RUN.step,
            mesh=config.mesh if asks_for_mesh else None,
            max_tokens=overrides.get("evaluation.max_tokens", 0),
        )
        print(json.dumps(report))


if __name__ == "__main__":
    command.run(main)
