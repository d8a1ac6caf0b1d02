"""Puts a run together: its task, its optimizer and its training step on a mesh."""

from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from transnormer_jax.models import ModelConfig
from transnormer_jax.models.block import has_constant_state
from transnormer_jax.tasks import Batch, Task
from transnormer_jax.training.config import Config
from transnormer_jax.training.curriculum import cut_rows
from transnormer_jax.training.joined_gradients import saves_messages
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.placement import place_state
from transnormer_jax.training.step import StepMetrics, TrainState, make_train_step


class Assembly(NamedTuple):
    """A run before any of its arrays exists.

    Attributes:
      optimizer: of its parameters.
      schedule: step -> learning rate.
      state: the shapes, dtypes and shardings of its `TrainState`.
    """

    task: Task
    optimizer: optax.GradientTransformationExtraArgs
    schedule: optax.Schedule
    state: Any

    @property
    def shardings(self) -> Any:
        """Those of the state."""
        return jax.tree.map(lambda x: x.sharding, self.state)


def assemble(config: Config, task: Task, mesh: Mesh) -> Assembly:
    """A task with the optimizer of a configuration, on a mesh."""
    schedule = make_schedule(config.optimizer, config.num_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    return Assembly(task, optimizer, schedule, place_state(task, optimizer, mesh))


def jit_train_step(config: Config, assembly: Assembly, length: int) -> Any:
    """The jitted (state, batch) -> (state, metrics), which donates the state, on rows cut to `length` tokens."""
    layout = assembly.shardings.params
    step = make_train_step(
        assembly.task,
        assembly.optimizer,
        assembly.schedule,
        config.accumulation_steps,
        config.seed,
        layout,
        join=isinstance(config.model, ModelConfig)
        and has_constant_state(config.model)
        and not config.model.dropout  # then a step draws no random numbers
        and saves_messages(assembly.state.params, jax.tree.leaves(layout)[0].mesh),
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        return step(state, cut_rows(batch, length) if config.curriculum else batch)

    return jax.jit(train_step, donate_argnums=0, out_shardings=(assembly.shardings, None))
