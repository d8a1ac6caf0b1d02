"""Each ablation of TransNormerLLM is another function, and still a causal model that can be read in pieces."""

import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

LENGTH = 24
# Layers that are alike: one scan, and half the time to compile.
TINY = {"num_layers": 2, "model_dim": 16, "glu_dim": 24, "vocab_size": LENGTH, "lrpe_layers": ()}
TOKENS = jnp.arange(LENGTH)[None]  # every token is another, so that a gradient tells positions apart
ABLATIONS = {
    "sinusoidal_position": {"decay": "none", "sinusoidal_position": True},
    "lrpe_alone": {"decay": "none", "lrpe_layers": (0, 1)},
    "no_temperature": {"decay_temperature": False},
    "no_gate": {"use_gate": False},
    "silu_glu": {"glu_activation": "silu"},
    "rms_norm": {"norm": "rms_norm"},
    "layer_norm": {"norm": "layer_norm"},
}
# Every field of these is another than the released models'.
TOGETHER = [
    {"sinusoidal_position": True, "decay": "none", "use_gate": False, "norm": "layer_norm"},
    {"lrpe_layers": (0, 1), "decay": "paper", "decay_temperature": False, "glu_activation": "silu", "norm": "rms_norm"},
]


def make(**overrides):
    """A model and random weights: those of one name are the same in every ablation."""
    model = TransNormerLLM(TransNormerLLMConfig.preset("tiny", **(TINY | overrides)))
    shapes = jax.eval_shape(model.init, jax.random.key(0), TOKENS)

    def draw(path, x):
        name = jax.tree_util.keystr(path)
        weights = 0.3 * np.random.default_rng(zlib.crc32(name.encode())).standard_normal(x.shape, np.float32)
        return jnp.asarray(weights + 1 if "scale" in name else weights)

    return model, jax.tree_util.tree_map_with_path(draw, shapes)


def test_each_is_another_function():
    outputs = {}
    for name, overrides in {"none": {}, **ABLATIONS}.items():
        model, variables = make(**overrides)
        outputs[name] = jax.jit(model.apply)(variables, TOKENS)
    for (one, x), (other, y) in itertools.combinations(outputs.items(), 2):
        assert np.abs(x - y).max() > 0.01 * np.abs(x).max(), (one, other)


@pytest.mark.parametrize("overrides", TOGETHER, ids=["without_gate", "with_gate"])
def test_causal_and_the_same_in_pieces(overrides):
    model, variables = make(**overrides)

    def feature_of_11(variables):
        hidden, _ = model.apply(variables, TOKENS, method="hidden")
        return hidden[0, 11, 0], model.apply(variables, hidden, method="unembed")

    gradient, whole = jax.jit(jax.grad(feature_of_11, has_aux=True))(variables)
    read = np.abs(gradient["params"]["embedding"]).max(axis=1) > 0
    assert read[:12].all()
    assert not read[12:].any()

    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
    logits, cache = step(TOKENS[:, :20], model.init_cache(1))
    pieces = [logits]
    for i in range(20, LENGTH):
        logits, cache = step(TOKENS[:, i : i + 1], cache)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-4 * np.abs(whole).max())


def test_absolute_positions_begin_anew_in_each_document():
    model, variables = make(**TOGETHER[0])
    apply = jax.jit(model.apply)
    packed = apply(variables, TOKENS, segment_ids=jnp.repeat(jnp.array([[1, 2]]), 12, axis=1))
    alone = apply(variables, TOKENS.reshape(2, 12))
    np.testing.assert_allclose(packed.reshape(alone.shape), alone, atol=2e-4 * np.abs(alone).max())


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
def test_one_layer_without_positions_cannot_tell_the_order_of_what_it_has_read(overrides, order_matters):
    model, variables = make(**({"num_layers": 1, "decay": "none"} | overrides))
    shuffled = TOKENS.at[:, 1:-1].set(jnp.flip(TOKENS[:, 1:-1], axis=1))
    last, other = jax.jit(model.apply)(variables, jnp.concatenate([TOKENS, shuffled]))[:, -1]
    difference = np.abs(last - other).max() / np.abs(last).max()
    assert difference > 1e-2 if order_matters else difference < 1e-5


def test_without_temperature_all_layers_have_the_decay_of_the_first():
    def factor_of_each_layer(**overrides):
        model, variables = make(**overrides)
        # With weights of zero nothing is written, so a state of ones shows the factor of one step.
        silent = jax.tree.map(jnp.zeros_like, variables)
        cache = jax.tree.map(jnp.ones_like, model.init_cache(1))
        _, cache = jax.jit(model.apply)(silent, TOKENS[:, :1], cache=cache)
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

    @jax.jit
    def hidden(offset):
        params = variables["params"] | {"embedding": variables["params"]["embedding"] + offset}
        return model.apply({"params": params}, TOKENS, method="hidden")[0]

    difference = np.abs(hidden(1.0) - hidden(0.0)).max()
    assert difference > 0.1 if sees else difference < 1e-4


@pytest.mark.parametrize("field", ["norm", "glu_activation", "decay"])
def test_mistakes_are_told(field):
    with pytest.raises(UserError, match=f"unknown {field} 'swish'"):
        TransNormerLLMConfig.preset("tiny", **{field: "swish"})
