"""Builds what a run trains and evaluates: its task, its training rows and its evaluation."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from jax.sharding import Mesh

from transnormer_jax.data import TokenizedDocuments, Tokenizer, batches_of, load_tokenizer
from transnormer_jax.data.text_loss import NOTABLE_LOSS, loss_warning, share_of_text_lost
from transnormer_jax.log import log
from transnormer_jax.tasks import TASKS, CausalLM, Params, Task, TrainingRows
from transnormer_jax.training.config import Config
from transnormer_jax.training.evaluators import DocumentEvaluator, OnBatch, RowEvaluator

# Parameters, and what is called between two batches -> metrics.
Evaluation = Callable[..., dict[str, float]]


class TrainingSetup(NamedTuple):
    """All that differs between a language model and a classifier.

    Attributes:
      training: what it is trained on.
      evaluate: parameters -> metrics on the held-out split.
      tokenizer: fingerprint of the tokenizer.
    """

    task: Task
    training: TrainingRows
    evaluate: Evaluation
    tokenizer: str


def load_setup(config: Config, mesh: Mesh) -> TrainingSetup:
    """Opens the data and assembles the task.

    Raises:
      UserError: the dataset, the task and the model do not fit together.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    task = make_task(config)
    evaluate = load_evaluation(config, tokenizer, mesh, config.data.eval_split, config.evaluation.max_tokens)
    return TrainingSetup(task, task.training_rows(config, tokenizer), evaluate, tokenizer.fingerprint)


def make_task(config: Config) -> Task:
    """The task of a configuration, with its model.

    Raises:
      UserError: the architecture cannot do the task.
    """
    return TASKS[config.task.name].from_config(config)


def load_evaluation(config: Config, tokenizer: Tokenizer, mesh: Mesh, split: str, max_tokens: int = 0) -> Evaluation:
    """The evaluation of parameters on a split, or on about `max_tokens` tokens from all over it.

    Raises:
      UserError: as `load_setup`.
    """
    if config.data.mixture:
        return _mixture_evaluation(config, tokenizer, mesh, split, max_tokens)
    task = make_task(config)
    held_out = task.held_out(config, tokenizer, split, max_tokens)
    if isinstance(held_out, TokenizedDocuments):
        assert isinstance(task, CausalLM), task
        evaluator = DocumentEvaluator(task, held_out, tokenizer, config.evaluation, mesh)
        return _with_loss_of_text(evaluator, share_of_text_lost(held_out, tokenizer))
    rows, num_rows, num_bytes, text_lost = held_out
    batch_size = config.evaluation.batch_size
    evaluation = RowEvaluator(task, lambda: batches_of(rows, num_rows, batch_size), mesh, num_bytes=num_bytes)
    return _with_loss_of_text(evaluation, text_lost)


def _with_loss_of_text(evaluation: Evaluation, lost: float) -> Evaluation:
    """The evaluation; where a notable share of the text is lost, with a warning now and the share in its metrics."""
    if lost <= NOTABLE_LOSS:
        return evaluation
    log(loss_warning(lost))
    return lambda params, *on_batch: evaluation(params, *on_batch) | {"text_lost": lost}


def _mixture_evaluation(config: Config, tokenizer: Tokenizer, mesh: Mesh, split: str, max_tokens: int) -> Evaluation:
    """Every source by itself; metrics carry the name of the source."""
    evaluations = {
        name: load_evaluation(
            dataclasses.replace(config, data=source),
            tokenizer,
            mesh,
            source.eval_split if split == config.data.eval_split else split,
            max_tokens,
        )
        for name, source in config.data.sources().items()
    }

    def evaluate(params: Params, *on_batch: OnBatch) -> dict[str, float]:
        results = {name: evaluation(params, *on_batch) for name, evaluation in evaluations.items()}
        report = {
            f"{name}/{key}": results[name][key]
            for name in results
            for key in ("loss", "bits_per_byte", "text_lost")
            if key in results[name]
        }
        return report | {"seconds": sum(result["seconds"] for result in results.values())}

    return evaluate
