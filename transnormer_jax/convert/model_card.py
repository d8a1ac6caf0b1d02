"""Writes the README.md of exported weights: facts of the run are filled in, the rest is marked TODO."""

import json
from importlib.resources import files

import jinja2

from transnormer_jax import __version__, storage
from transnormer_jax.training.workdir import read_config


def model_card(workdir: storage.AnyPath, step: int, num_parameters: int) -> str:
    """Returns a model card in Hugging Face's form.

    Args:
      workdir: of the run; one without metrics.jsonl was converted, and its card says nothing of training.

    Raises:
      UserError: there is no such run.
    """
    config, evaluation = read_config(workdir), workdir / "eval.json"
    template = files("transnormer_jax.convert").joinpath("model_card.md.jinja").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return environment.from_string(template).render(
        model=config.model,
        run=config if (workdir / "metrics.jsonl").exists() else None,
        step=step,
        num_parameters=num_parameters,
        evaluation=json.loads(evaluation.read_text()) if evaluation.exists() else None,
        version=__version__,
    )
