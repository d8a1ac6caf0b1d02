"""The flags of every command that opens a run: workdir, checkpoint and config overrides."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from absl import flags

from transnormer_jax import storage
from transnormer_jax.config_flag import define_run_config_flag, override_values, read_run_config_flag
from transnormer_jax.errors import UserError

if TYPE_CHECKING:
    from transnormer_jax.inference import Generator
    from transnormer_jax.training import Config, Run

# Flags defined here belong to the command that asks for them, and its --help shows them.
flags.disclaim_key_flags()


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """What the flags say, once they are parsed."""

    _workdir: flags.FlagHolder
    _step: flags.FlagHolder
    _config: flags.FlagHolder

    @property
    def workdir(self) -> storage.AnyPath:
        """Of the run."""
        return storage.as_path(self._workdir.value)

    @property
    def step(self) -> int | None:
        """Of the checkpoint to read; None for the newest.

        Raises:
          UserError: there is no such checkpoint.
        """
        from transnormer_jax.training.chosen_step import chosen_step

        return chosen_step(self.workdir, self._step.value)

    @property
    def config(self) -> Config:
        """That of the run, with overrides.

        Raises:
          UserError: there is no run, or the values do not fit together.
        """
        from transnormer_jax.training.workdir import read_config

        return read_run_config_flag(self._config, self.workdir) or read_config(self.workdir)

    @property
    def overrides(self) -> dict[str, Any]:
        """Key -> value of every --config.KEY=VALUE."""
        return override_values(self._config)

    def load(self) -> Run:
        """The run, its parameters on one device.

        Raises:
          UserError: there is no such run or checkpoint, or the overrides make another model.
        """
        from transnormer_jax.training import load_workdir

        return load_workdir(self.workdir, step=self.step, config=self.config)

    def load_generator(self, *, int8: bool = False) -> Generator:
        """The model of the run, ready to generate; with `int8`, its matrices rounded.

        Raises:
          UserError: as `load`, or the model is no causal language model with a state of constant size.
        """
        return load_generator(self.workdir, int8=int8, step=self.step, config=self.config)


def define_run_flags(workdir: str = "Directory of a run of train.py.", *, config_file: bool = False) -> RunFlags:
    """Defines --workdir, --step and --config.KEY=VALUE.

    Args:
      workdir: what --help says of it.
      config_file: whether --config=FILE may replace the data of the run.
    """
    return RunFlags(
        flags.DEFINE_string("workdir", None, workdir, required=True),
        flags.DEFINE_string(
            "step",
            "",
            "Step of the checkpoint to read, or 'best' for the lowest held-out loss among those that are kept; "
            "the newest if empty.",
        ),
        define_run_config_flag(file=config_file),
    )


def define_int8() -> flags.FlagHolder[bool]:
    """Defines --int8."""
    return flags.DEFINE_bool("int8", False, "Round the weights to int8, a quarter of the memory of float32.")


def load_generator(
    workdir: storage.AnyPath | str, *, int8: bool = False, step: int | None = None, config: Config | None = None
) -> Generator:
    """The model of a run, ready to generate, on one device.

    Args:
      int8: whether its matrices are rounded.
      step: of the checkpoint; None is the newest.
      config: the run's, with other values where they make no other model; None is the run's own.

    Raises:
      UserError: there is no such run or checkpoint, or it is no causal language model with a state of constant size.
    """
    from transnormer_jax.inference import Generator, quantize
    from transnormer_jax.models import ModelConfig, unstack_layers
    from transnormer_jax.tasks import CausalLM
    from transnormer_jax.training import load_workdir
    from transnormer_jax.training.setup import make_task

    run = load_workdir(workdir, step=step, config=config)
    model = run.model_config
    if not isinstance(model, ModelConfig) or not isinstance(make_task(run.config), CausalLM):
        raise UserError(
            f"{str(workdir)!r} holds a {run.config.architecture!r} trained for {run.config.task.name!r}: give a run of "
            "a causal language model."
        )
    params = quantize(run.params) if int8 else run.params
    return Generator(*unstack_layers(model, params, donate=True), run.tokenizer)
