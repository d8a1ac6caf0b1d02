"""Schedules and the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.training.config import OptimizerConfig
from transnormer_jax.training.optimizer import make_optimizer, make_schedule


def test_cosine_schedule():
    schedule = make_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.1), 110)
    np.testing.assert_allclose([schedule(0), schedule(4), schedule(9), schedule(10)], [0.1, 0.5, 1, 1], rtol=1e-6)
    np.testing.assert_allclose([schedule(60), schedule(110)], [0.55, 0.1], rtol=1e-5)


def test_warmup_stable_decay_schedule():
    config = OptimizerConfig(learning_rate=1.0, schedule="wsd", warmup_steps=10, decay_fraction=0.2, final_fraction=0.0)
    schedule = make_schedule(config, 100)
    np.testing.assert_allclose([schedule(0), schedule(9), schedule(50), schedule(80)], [0.1, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose([schedule(90), schedule(100)], [0.5, 0], atol=1e-6)


def test_step_and_inverse_sqrt():
    fields = {"learning_rate": 1.0, "warmup_steps": 10, "final_fraction": 0.1, "decay_fraction": 0.7}
    schedule = make_schedule(OptimizerConfig(schedule="step", **fields), 100)
    np.testing.assert_allclose([schedule(29), schedule(30), schedule(99)], [1, 0.1, 0.1], rtol=1e-6)
    schedule = make_schedule(OptimizerConfig(schedule="inverse_sqrt", **fields), 100)
    np.testing.assert_allclose([schedule(9), schedule(10), schedule(40)], [1, 1, 0.5], rtol=1e-6)


@pytest.mark.parametrize("name", ["adamw", "radam"])
def test_weight_decay_is_decoupled(name):
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.5, clip_norm=0.0), lambda step: 0.1)
    params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "linear", "warmup_steps": 1}, "cosine, inverse_sqrt, step, wsd"),
        ({"warmup_steps": 100}, "must be less than num_steps"),
        ({"schedule": "wsd", "warmup_steps": 50, "decay_fraction": 0.6}, "no room"),
    ],
)
def test_mistakes_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        make_schedule(OptimizerConfig(**fields), 100)


def test_only_matrices_decay():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(config, lambda step: 0.1)
    attention = {"q": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}, "theta": jnp.ones(2)}
    params = {"embedding": jnp.ones(2), "attention": attention}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_allclose(updates["embedding"], -0.05)
    np.testing.assert_allclose(updates["attention"]["q"]["kernel"], -0.05)
    assert not updates["attention"]["q"]["bias"].any()
    assert not updates["attention"]["theta"].any()


@pytest.mark.slow
@pytest.mark.parametrize("clip_norm", [0.0, 0.5])
def test_clipping_and_skipping_are_those_of_optax(clip_norm):
    """The same updates, and the same leaves of the state in the same order: checkpoints store them as a list."""
    config = OptimizerConfig(name="radam", clip_norm=clip_norm)
    ours = make_optimizer(config, lambda step: 0.1 / (1 + step))
    [_, inner] = ours.init({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}).inner_state
    scale = optax.scale_by_radam(b1=config.b1, b2=config.b2, eps=config.eps)
    mask = {"kernel": True, "bias": False}
    decay = optax.add_decayed_weights(config.weight_decay, mask=mask)
    update = optax.chain(scale, decay, optax.scale_by_learning_rate(lambda step: 0.1 / (1 + step)))
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    theirs = optax.apply_if_finite(optax.chain(clip, update), max_consecutive_errors=100)
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
    states = [ours.init(params), theirs.init(params)]
    assert jax.tree.structure(inner) == jax.tree.structure(states[1].inner_state[1])
    for seed, poison in enumerate([0, np.nan, 0, np.inf, np.inf, 0, 0]):
        keys = jax.random.split(jax.random.key(seed))
        gradients = {"kernel": jax.random.normal(keys[0], (2, 3)), "bias": jax.random.normal(keys[1], 3) + poison}
        results = [one.update(gradients, state, params) for one, state in zip((ours, theirs), states, strict=True)]
        states = [state for _, state in results]
        for a, b in zip(*map(jax.tree.leaves, results), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
