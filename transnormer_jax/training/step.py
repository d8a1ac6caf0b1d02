"""One training step: gradients of summed losses, divided once, and an update that is skipped if not finite.

On a mesh, whatever the step decides and reports comes from two sums over the devices, beside those of the gradient: of
the loss with its counts, and of the squares of the gradient.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from transnormer_jax.tasks import Batch, LossSums, Params, Task
from transnormer_jax.training.joined_gradients import joined
from transnormer_jax.training.optimizer import global_norm, learning_rate


class TrainState(NamedTuple):
    """All that a run changes."""

    step: Int[Array, ""]
    params: Params
    opt_state: Any


class StepMetrics(NamedTuple):
    """What one step reports, scalars.

    Attributes:
      loss: in nats per prediction; not a number in a step without predictions.
      accuracy: share of the predictions that are right.
      tokens: read, padding not counted.
      grad_norm: before clipping.
      learning_rate: of this step.
      skipped_steps: whose loss or gradient was not finite, since the beginning of the run.
      skipped_in_a_row: of these, up to this step; a step without predictions neither adds to it nor ends it.
      empty_steps: 1 if the batch had nothing to predict, so that the step changed nothing; else 0.
      loss_sum: over the predictions.
      correct: predictions that are right.
      predictions: how many there are.
    """

    loss: Float[Array, ""]
    accuracy: Float[Array, ""]
    tokens: Float[Array, ""]
    grad_norm: Float[Array, ""]
    learning_rate: Float[Array, ""]
    skipped_steps: Int[Array, ""]
    skipped_in_a_row: Int[Array, ""]
    empty_steps: Int[Array, ""]
    loss_sum: Float[Array, ""]
    correct: Float[Array, ""]
    predictions: Float[Array, ""]


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformationExtraArgs,
    schedule: optax.Schedule,
    accumulation_steps: int,
    seed: int = 0,
    layout: Any = None,
    join: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Returns the function to jit, which takes a batch of arrays [B, ...].

    Args:
      layout: the shardings of the parameters where the function runs on a mesh; see `global_norm`.
      join: whether gradients are summed in one message; see `joined_gradients`.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, sums = accumulate_gradients(
            task, state.params, batch, accumulation_steps, key, layout if join else None
        )
        norm = global_norm(gradients, layout)
        empty = sums.predictions == 0
        updates, opt_state = optimizer.update(
            gradients,
            state.opt_state,
            state.params,
            norm=norm,
            # A loss that overflows is a bad step, whatever its gradient.
            finite=jnp.isfinite(sums.loss) & jnp.isfinite(norm),
            empty=empty,
        )
        metrics = StepMetrics(
            loss=sums.loss / sums.predictions,
            accuracy=sums.correct / sums.predictions,
            tokens=sums.tokens,
            grad_norm=norm,
            learning_rate=learning_rate(state.opt_state, schedule),
            skipped_steps=opt_state.total_notfinite,
            skipped_in_a_row=opt_state.notfinite_count,
            empty_steps=empty.astype(jnp.int32),
            loss_sum=sums.loss,
            correct=sums.correct,
            predictions=sums.predictions,
        )
        new_state = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        # Another shape or dtype would compile the next step again, and could not be restored from a checkpoint.
        chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
        return new_state, metrics

    return train_step


def accumulate_gradients(
    task: Task, params: Params, batch: Batch, steps: int, key: Array, joined_layout: Any = None
) -> tuple[Params, LossSums]:
    """Gradient of the mean loss over all predictions of the batch, by `steps` micro-batches.

    Micro-batches with more padding weigh less: losses are summed and divided by all predictions once. Without any
    prediction the gradient is 0. With `joined_layout`, the shardings of the parameters, see `joined_gradients`.
    """

    def summed_loss(params: Params, batch: Batch, key: Array) -> tuple[Array, LossSums]:
        sums = task.loss_and_metrics(params, batch, key)
        return sums.loss, sums

    def summed(params: Params, batch: Batch, key: Array) -> tuple[Params, LossSums]:
        gradient = jax.grad(summed_loss, has_aux=True)
        if steps == 1:
            return gradient(params, batch, key)
        # Row i goes to micro-batch i % steps: each is then sharded like the whole batch.
        micro = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, steps, *x.shape[1:]), 0, 1), dict(batch))

        def add(total: Any, one: tuple[Batch, Array]) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, *one)), None

        zero = (jax.tree.map(jnp.zeros_like, params), LossSums.zero())
        return jax.lax.scan(add, zero, (micro, jax.random.split(key, steps)))[0]

    on_devices = summed if joined_layout is None else joined(summed, joined_layout)
    gradients, sums = on_devices(params, batch, key)
    return jax.tree.map(lambda g: g / jnp.maximum(sums.predictions, 1), gradients), sums
