"""One training step: gradients of summed losses, divided once, and an update that is skipped if not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transnormer_jax.tasks import Batch, Params, Sums, Task


class TrainState(NamedTuple):
    """All that a run changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


class StepMetrics(NamedTuple):
    """What one step reports, scalars.

    Attributes:
      loss: in nats per prediction.
      accuracy: share of the predictions that are right.
      tokens: read, padding not counted.
      predictions: made.
      empty_steps: 1 if the batch holds no prediction.
      grad_norm: before clipping.
      learning_rate: of this step.
      skipped_steps: since the beginning of the run.
      skipped_in_a_row: up to this step.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    tokens: Float[Array, ""]
    predictions: Float[Array, ""]
    empty_steps: Int[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped_steps: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    accumulation_steps: int,
    seed: int = 0,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Returns the function to jit. It takes a batch of arrays [B, ...]; `seed` is that of dropout and hashes."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, sums = accumulate_gradients(task, state.params, batch, accumulation_steps, key)
        loss = sums.loss / sums.predictions
        # A loss that overflows is a bad step, whatever its gradient.
        gradients = jax.tree.map(lambda g: jnp.where(jnp.isfinite(loss), g, jnp.nan), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = StepMetrics(
            loss=loss,
            accuracy=sums.correct / sums.predictions,
            tokens=sums.tokens,
            predictions=sums.predictions,
            empty_steps=(sums.predictions == 0).astype(jnp.int32),
            grad_norm=optax.tree.norm(gradients),
            learning_rate=schedule(state.step - state.opt_state.total_notfinite),
            skipped_steps=opt_state.total_notfinite,
            skipped_in_a_row=opt_state.notfinite_count,
        )
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return train_step


def accumulate_gradients(task: Task, params: Params, batch: Batch, steps: int, key: Array) -> tuple[Params, Sums]:
    """Gradient of the mean loss over all predictions of the batch, by `steps` micro-batches.

    Micro-batches with more padding weigh less: losses are summed and divided by all predictions once.
    """

    def summed_loss(params: Params, batch: Batch, key: Array) -> tuple[Array, Sums]:
        sums = task.sums(params, batch, key)
        return sums.loss, sums

    gradient = jax.grad(summed_loss, has_aux=True)
    if steps == 1:
        gradients, sums = gradient(params, batch, key)
    else:
        # Row i goes to micro-batch i % steps: each then lies on all devices, as the whole batch does.
        micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, steps, *x.shape[1:]), 0, 1), dict(batch))

        def add(total: Any, one: tuple[Batch, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *one)), None

        zero = (jax.tree.map(jnp.zeros_like, params), Sums.zero())
        (gradients, sums), _ = jax.lax.scan(add, zero, (micro, jax.random.split(key, steps)))
    return jax.tree.map(lambda g: g / sums.predictions, gradients), sums
