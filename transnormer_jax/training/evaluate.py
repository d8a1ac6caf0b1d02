"""The evaluation of a finished or running run, for `eval.py`."""

import dataclasses
from typing import Any

import jax

from transnormer_jax import storage
from transnormer_jax.distributed import MeshConfig
from transnormer_jax.distributed.shared_files import prepared_once
from transnormer_jax.log import log
from transnormer_jax.training.available_mesh import available_mesh, rounded_up
from transnormer_jax.training.config import Config
from transnormer_jax.training.metrics import finite
from transnormer_jax.training.placement import rows_of
from transnormer_jax.training.setup import load_evaluation
from transnormer_jax.training.workdir import load_workdir, read_config, write_json


def evaluate_run(
    workdir: storage.AnyPath,
    config: Config | None = None,
    split: str = "",
    *,
    step: int | None = None,
    mesh: MeshConfig | None = None,
    max_tokens: int = 0,
) -> dict[str, Any]:
    """Evaluates a checkpoint of a run on a split, on any devices, and writes `eval.json` into the workdir.

    Args:
      workdir: of the run, which also gives the architecture, the task and the tokenizer.
      config: the dataset and the batch; None is the run's own.
      split: of the dataset; "" is `config.data.eval_split`.
      step: of the checkpoint; None is the newest.
      mesh: of the devices; None is that of the config if it fits them, else one that does.
      max_tokens: tokens of the split that are evaluated, as in training; 0 means all.

    Returns:
      The task's report, with `step`, `dataset` and `split`.

    Raises:
      UserError: there is no such run, checkpoint or split, `mesh` does not fit, or the config has another tokenizer or
        another model than the run.
    """
    workdir = storage.as_path(workdir)
    config = config or read_config(workdir)
    made = available_mesh(config, mesh)
    # A larger batch gives the same result: rows do not affect one another.
    rows = rounded_up(config.evaluation.batch_size, rows_of(made))
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, batch_size=rows))
    split = split or config.data.eval_split
    run = load_workdir(workdir, made, step, config)
    with prepared_once(config.data.data_dir):
        evaluate = load_evaluation(run.config, run.tokenizer, made, split, max_tokens)
    axes = ", ".join(f"{axis}={size}" for axis, size in made.shape.items() if size > 1)
    devices = f"{made.size} x {made.devices.flat[0].device_kind}" + (f" ({axes})" if axes else "")
    log(f"evaluating step {run.step} on {devices}, {rows} rows a batch")
    with jax.set_mesh(made):
        result = evaluate(run.params)
    report = {"step": run.step, "dataset": ", ".join(config.data.sources()), "split": split, **finite(result)}
    if jax.process_index() == 0:
        write_json(workdir / "eval.json", report)
    return report
