"""Evaluates a trained model on tasks of the LM Evaluation Harness.

    python -m transnormer_jax.lm_eval --workdir=runs/tiny --tasks=lambada_openai,hellaswag

Prints the harness's table. For your own tasks, give `--include_path=DIR` with YAML files in the harness's format. In
Python, `transnormer_jax.lm_eval.model.TransNormerHarness(generator)` is a model for `lm_eval.simple_evaluate`.
"""

import json

from absl import flags

from transnormer_jax import command, storage
from transnormer_jax.errors import UserError
from transnormer_jax.run_flags import define_int8, define_run_flags

_RUN = define_run_flags()
_INT8 = define_int8()
_TASKS = flags.DEFINE_list("tasks", None, "Names of tasks, separated by commas.", required=True)
_INCLUDE_PATH = flags.DEFINE_string("include_path", None, "Directory with additional tasks as YAML files.")
_NUM_FEWSHOT = flags.DEFINE_integer("num_fewshot", None, "Examples before each question; by default the task's own.")
_LIMIT = flags.DEFINE_integer("limit", None, "Maximum number of documents per task.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Number of texts processed together.", 1)
_OUT = flags.DEFINE_string("out", None, "JSON file for the results.")


def main() -> None:
    """Evaluates."""
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table

        from transnormer_jax.lm_eval.model import TransNormerHarness
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: in a clone, pip install -e '.[lm_eval]'.") from error
    if _OUT.value:  # before the work, which would be lost where nothing can be written
        storage.as_path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
    manager = TaskManager(include_path=_INCLUDE_PATH.value)
    for task in _TASKS.value:
        if not manager.match_tasks([task]):
            raise UserError(f"the harness has no task {task!r}: `lm_eval ls tasks` lists them.")
    harness = TransNormerHarness(_RUN.load_generator(int8=_INT8.value), _BATCH_SIZE.value)
    results = lm_eval.simple_evaluate(
        harness, tasks=_TASKS.value, num_fewshot=_NUM_FEWSHOT.value, limit=_LIMIT.value, task_manager=manager
    )
    print(make_table(results))
    if _OUT.value:
        kept = {name: results[name] for name in ("results", "versions", "n-shot", "n-samples", "higher_is_better")}
        storage.write_text(storage.as_path(_OUT.value), json.dumps(kept, indent=1, default=str) + "\n")


if __name__ == "__main__":
    command.run(main)
