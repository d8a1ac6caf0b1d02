"""The evaluation of a finished or running run, for `eval.py`."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from transnormer_jax.data import load_tokenizer
from transnormer_jax.distributed import make_mesh, shared_files
from transnormer_jax.errors import UserError
from transnormer_jax.training.config import Config
from transnormer_jax.training.metrics import finite
from transnormer_jax.training.placement import check_mesh
from transnormer_jax.training.setup import load_evaluation
from transnormer_jax.training.workdir import load_workdir, read_config, tokenizer_name, write_json


def evaluate_run(workdir: Path, config: Config | None = None, split: str = "") -> dict[str, Any]:
    """Evaluates the newest checkpoint of a run on a whole split, and writes `eval.json` into the workdir.

    Args:
      workdir: of the run, which also gives the architecture, the task and the tokenizer.
      config: the dataset and the batch; None is the run's own.
      split: of the dataset; "" is `config.data.eval_split`.

    Returns:
      The task's report, with `step`, `dataset` and `split`.

    Raises:
      UserError: there is no such run or split, or the config's tokenizer is not the run's.
    """
    own = read_config(workdir)
    config = config or own
    tokenizer = load_tokenizer(tokenizer_name(workdir, own))
    if config is not own and load_tokenizer(config.data.tokenizer).fingerprint != tokenizer.fingerprint:
        raise UserError(
            f"the run has tokenizer {own.data.tokenizer!r}, the config {config.data.tokenizer!r}, which is another: "
            "evaluate with the run's own."
        )
    config = dataclasses.replace(config, architecture=own.architecture, model=own.model, task=own.task)
    mesh = make_mesh(config.mesh)
    split = split or config.data.eval_split
    check_mesh(config, mesh)
    run = load_workdir(workdir, mesh)
    with shared_files.prepared_once(config.data.data_dir):
        evaluate = load_evaluation(config, tokenizer, mesh, split)
    with jax.set_mesh(mesh):
        result = evaluate(run.params)
    report = {"step": run.step, "dataset": ", ".join(config.data.sources()), "split": split, **finite(result)}
    if jax.process_index() == 0:
        write_json(workdir / "eval.json", report)
    return report
