"""Training: config, optimizer, step, loop, evaluation, checkpoints, metrics and FLOP counts."""

from transnormer_jax.training.config import Config, default_config
from transnormer_jax.training.evaluate import evaluate_run
from transnormer_jax.training.loop import train
from transnormer_jax.training.workdir import Run, load_workdir

__all__ = ["Config", "Run", "default_config", "evaluate_run", "load_workdir", "train"]
