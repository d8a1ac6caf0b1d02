"""Tasks: what a model is trained for, as batch -> sums of loss and metrics."""

from transnormer_jax.tasks.fine_tuning import SupervisedLM
from transnormer_jax.tasks.language_modelling import CausalLM, MaskedLM
from transnormer_jax.tasks.task import TASKS, Batch, HeldOutRows, LossSums, Params, Task, TaskConfig, TrainingRows

__all__ = [
    "TASKS",
    "Batch",
    "CausalLM",
    "HeldOutRows",
    "LossSums",
    "MaskedLM",
    "Params",
    "SupervisedLM",
    "Task",
    "TaskConfig",
    "TrainingRows",
]
