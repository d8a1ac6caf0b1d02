"""One training step: accumulation, bad steps, and many devices."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig
from transnormer_jax.tasks import CausalLM
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule
from transnormer_jax.training.step import TrainState, accumulate_gradients, make_train_step

TASK = CausalLM(TransNormerLLM(TransNormerLLMConfig.preset("tiny", num_layers=1, init_std=0.1)))


def make_batch(seed: int = 0):
    """Rows with very different amounts of padding."""
    inputs, targets = jax.random.randint(jax.random.key(seed), (2, 16, 32), 3, 259)
    lengths = np.random.default_rng(seed).integers(1, 33, 16)
    segment_ids = jnp.asarray(np.arange(32)[None] < lengths[:, None], jnp.int32)
    return {"inputs": inputs, "targets": targets, "segment_ids": segment_ids}


def make_state_and_step(accumulation_steps: int = 1):
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=2)
    schedule = make_schedule(config, 100)
    optimizer = make_optimizer(config, schedule)
    params = jax.jit(TASK.init)(jax.random.key(0))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    return state, make_train_step(TASK, optimizer, schedule, accumulation_steps)


def assert_trees_close(actual, expected, tolerance: float):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), 1e-6))


@pytest.mark.slow
def test_accumulation_weighs_tokens_not_batches():
    params, batch = jax.jit(TASK.init)(jax.random.key(0)), make_batch()
    accumulate = jax.jit(accumulate_gradients, static_argnums=(0, 3))
    whole, sums = accumulate(TASK, params, batch, 1, jax.random.key(0))
    parts, part_sums = accumulate(TASK, params, batch, 4, jax.random.key(0))
    assert sums.predictions == part_sums.predictions == (batch["segment_ids"] != 0).sum()
    assert_trees_close(parts, whole, 1e-4)


def test_loss_goes_down():
    state, step = make_state_and_step()
    step, batch = jax.jit(step), make_batch()
    losses = []
    for _ in range(20):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(259), rel=0.2)
    assert losses[-1] < 0.7 * losses[0]
    assert int(state.step) == 20


def test_a_bad_step_changes_nothing_and_is_counted():
    state, step = make_state_and_step()
    step = jax.jit(step)
    state, _ = step(state, make_batch())
    # An infinite embedding row makes the loss infinite.
    embedding = state.params["embedding"].at[5].set(jnp.inf)
    bad_state = state._replace(params={**state.params, "embedding": embedding})
    after, metrics = step(bad_state, make_batch(1))
    assert (int(metrics.skipped_steps), int(metrics.skipped_in_a_row), int(metrics.empty_steps)) == (1, 1, 0)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(bad_state.params), strict=True):
        np.testing.assert_array_equal(a, b)
    after, metrics = step(after, make_batch(2))
    assert (int(metrics.skipped_steps), int(metrics.skipped_in_a_row)) == (2, 2)
    # A good step is taken as if the bad ones had not been, and ends the row of them.
    after = after._replace(params=state.params)
    recovered, metrics = step(after, make_batch(3))
    assert (int(metrics.skipped_steps), int(metrics.skipped_in_a_row)) == (2, 0)
    expected, expected_metrics = step(state, make_batch(3))
    assert metrics.learning_rate == expected_metrics.learning_rate
    for a, b in zip(jax.tree.leaves(recovered.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_without_predictions_changes_nothing_and_is_no_bad_step():
    state, step = make_state_and_step()
    step = jax.jit(step)
    state, first = step(state, make_batch())
    after, metrics = step(state, {**make_batch(1), "segment_ids": jnp.zeros((16, 32), jnp.int32)})
    assert (int(metrics.empty_steps), int(metrics.skipped_steps), int(metrics.skipped_in_a_row)) == (1, 0, 0)
    assert (float(metrics.loss_sum), float(metrics.predictions), float(metrics.grad_norm)) == (0, 0, 0)
    assert int(after.step) == 2
    for a, b in zip(jax.tree.leaves(after[1:]), jax.tree.leaves(state[1:]), strict=True):
        np.testing.assert_array_equal(a, b)
    # The mean over both steps is that of their predictions.
    assert float(first.loss_sum / first.predictions) == float(first.loss)
    assert int(first.empty_steps) == 0


def test_other_batches_are_not_traced_again():
    state, step = make_state_and_step()
    step = jax.jit(chex.assert_max_traces(step, n=1))
    for seed in range(3):
        state, _ = step(state, make_batch(seed))
    chex.assert_tree_all_finite(state.params)
