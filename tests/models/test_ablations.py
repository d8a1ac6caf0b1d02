"""Each ablation of TransNormerLLM is another function, and without any position the order of tokens is lost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of, random_params
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

LENGTH = 24
# Layers that are alike: one scan, and half the time to compile.
TINY = {"num_layers": 2, "model_dim": 16, "glu_dim": 24, "vocab_size": LENGTH, "lrpe_layers": ()}
TOKENS = jnp.arange(LENGTH)[None]  # every token differs
ABLATIONS = {
    "sinusoidal_position": {"decay": "none", "sinusoidal_position": True},
    "lrpe_alone": {"decay": "none", "lrpe_layers": (0, 1)},
    "no_temperature": {"decay_temperature": False},
    "no_gate": {"use_gate": False},
    "silu_glu": {"glu_activation": "silu"},
    "rms_norm": {"norm": "rms_norm"},
    "layer_norm": {"norm": "layer_norm"},
}


def make(**overrides):
    """A model and random weights: those of one name are the same in every ablation."""
    model = TransNormerLLM(TransNormerLLMConfig.preset("tiny", **(TINY | overrides)))
    return model, {"params": random_params(model, 0.3)}


@pytest.mark.slow
def test_each_is_another_function():
    outputs = {}
    for name, overrides in {"none": {}, **ABLATIONS}.items():
        model, variables = make(**overrides)
        outputs[name] = apply_of(model)(variables, TOKENS)
    for (one, x), (other, y) in itertools.combinations(outputs.items(), 2):
        assert np.abs(x - y).max() > 0.01 * np.abs(x).max(), (one, other)


@pytest.mark.parametrize(
    ("overrides", "order_matters"),
    [
        ({}, False),
        ({"sinusoidal_position": True}, True),
        ({"decay": "released"}, True),
        ({"lrpe_layers": (0,)}, True),
    ],
    ids=str,
)
def test_one_layer_without_positions_is_blind_to_order(overrides, order_matters):
    model, variables = make(**({"num_layers": 1, "decay": "none"} | overrides))
    shuffled = TOKENS.at[:, 1:-1].set(jnp.flip(TOKENS[:, 1:-1], axis=1))
    last, other = apply_of(model)(variables, jnp.concatenate([TOKENS, shuffled]))[:, -1]
    difference = np.abs(last - other).max() / np.abs(last).max()
    assert difference > 1e-2 if order_matters else difference < 1e-5


@pytest.mark.slow
def test_without_temperature_all_layers_have_the_decay_of_the_first():
    def factor_of_each_layer(**overrides):
        model, variables = make(**overrides)
        # With weights of zero nothing is written, so a state of ones shows the factor of one step.
        silent = jax.tree.map(jnp.zeros_like, variables)
        cache = jax.tree.map(jnp.ones_like, model.init_cache(1))
        _, cache = apply_of(model)(silent, TOKENS[:, :1], cache=cache)
        return cache.states[0][:, 0, :, 0, 0]

    first, second = factor_of_each_layer(decay_temperature=False)
    np.testing.assert_array_equal(first, second)
    first_of_released, second_of_released = factor_of_each_layer()
    np.testing.assert_array_equal(first, first_of_released)
    assert np.abs(second_of_released - first).max() > 0.01


def test_parameters_of_gate_and_norms():
    def count(**overrides):
        return sum(x.size for x in jax.tree.leaves(make(**overrides)[1]))

    width, norms = TINY["model_dim"], 3 * TINY["num_layers"] + 1
    assert count() - count(use_gate=False) == TINY["num_layers"] * width**2
    assert count(norm="rms_norm") - count() == norms * width
    assert count(norm="layer_norm") - count() == 2 * norms * width


@pytest.mark.parametrize(("norm", "sees"), [("layer_norm", False), ("rms_norm", True), ("simple_rms_norm", True)])
def test_layer_norm_alone_sees_no_offset_common_to_all_features(norm, sees):
    model, variables = make(norm=norm, num_layers=1, scale_embedding=False)
    shifted = variables["params"] | {"embedding": variables["params"]["embedding"] + 1}
    hidden, other = (
        apply_of(model)({"params": params}, TOKENS, method="hidden")[0] for params in (variables["params"], shifted)
    )
    difference = np.abs(hidden - other).max()
    assert difference > 0.1 if sees else difference < 1e-4
