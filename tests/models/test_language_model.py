"""Properties of the language model that hold for any weights, and for every mixer that can carry a state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of, random_params
from transnormer_jax.models import (
    LanguageModel,
    ModelConfig,
    TransNormerConfig,
    TransNormerLLM,
    TransNormerLLMConfig,
    unstack_layers,
)
from transnormer_jax.models.block import has_constant_state
from transnormer_jax.papers.config import BaselineConfig

TRANSNORMER = {"scale_embedding": False, "norm": "layer_norm"}
# Of the last two, every field differs from the released models'.
CONFIGS: dict[str, ModelConfig] = {
    "transnormer_llm": TransNormerLLMConfig.preset("tiny", num_layers=3),
    "t2": TransNormerConfig.preset("tiny", num_layers=4, attention="t2", **TRANSNORMER),
    "softmax": TransNormerConfig.preset("tiny", attention="softmax", **TRANSNORMER),
    "hybrid": BaselineConfig.preset("tiny", num_layers=3, attention="diag_t1,performer,cosformer", **TRANSNORMER),
    "sinusoidal": TransNormerLLMConfig.preset(
        "tiny", sinusoidal_position=True, decay="none", lrpe_layers=(), use_gate=False, norm="layer_norm", num_heads=1
    ),
    "lrpe_in_the_middle": TransNormerLLMConfig.preset(
        "tiny",
        num_layers=3,
        lrpe_layers=(1,),
        decay="paper",
        decay_temperature=False,
        activation="1+elu",
        glu_activation="silu",
        norm="rms_norm",
        use_bias=True,
        tie_embeddings=False,
        scale_embedding=False,
        num_heads=4,
        backend="associative_scan",
    ),
}

# 385m, 1b and 7b: counted from the released checkpoints' shapes; the others follow from the paper's sizes.
PARAMETERS = {
    "tiny": 125_184,
    "385m": 398_984_192,
    "1b": 1_020_266_496,
    "3b": 2_942_568_960,
    "7b": 6_931_091_456,
    "13b": 12_831_953_920,
    "65b": 64_546_152_448,
    "175b": 176_846_548_992,
}

LENGTH = 40
# Two texts, read as one document each, and two others.
TEXTS, OTHERS = np.random.default_rng(1).integers(3, 259, (2, 2, LENGTH), dtype=np.int32)


def make(name: str, **overrides):
    """A model and its variables."""
    model = LanguageModel(CONFIGS[name].replace(**overrides))
    return model, {"params": random_params(model)}


def whole_pass(name: str, tokens):
    """The definition that everything else is compared with: logits of documents read at once, without a cache."""
    model, variables = make(name)
    return apply_of(model)(variables, tokens, segment_ids=np.ones_like(tokens))


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameter_counts(preset):
    model = TransNormerLLM(TransNormerLLMConfig.preset(preset))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PARAMETERS[preset]


def models(*quick: str):
    """Runs a test over all models, quickly over these."""
    return pytest.mark.parametrize(
        "name", [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
    )


@models("transnormer_llm", "t2", "softmax", "sinusoidal")
def test_no_token_sees_later_ones_or_another_document(name: str):
    model, variables = make(name)
    whole, others = (whole_pass(name, tokens) for tokens in (TEXTS, OTHERS))
    changed = whole_pass(name, np.concatenate([TEXTS[:, :20], OTHERS[:, 20:]], axis=1))
    np.testing.assert_array_equal(changed[:, :20], whole[:, :20])
    assert (np.abs(changed - others)[:, 20:].max(axis=-1) > 1e-3).all()  # each sees what comes before

    packed = np.concatenate([OTHERS[:, 30:], TEXTS[:, :17], OTHERS[:, :13]], axis=1)  # neither begins a block or chunk
    ids = np.repeat([[0, 7, 3]], [10, 17, 13], axis=1).repeat(2, axis=0)
    logits = apply_of(model)(variables, packed, segment_ids=ids)
    close(logits[:, 10:27], whole[:, :17])
    close(logits[:, 27:], others[:, :13])


@models("transnormer_llm", "softmax")
def test_reading_in_pieces_is_one_pass(name: str):
    """Prefill of a row that is padded on the left and one on the right, steps, and packed documents after a cache."""
    model, variables = make(name)
    apply, rows = apply_of(model), np.arange(2)
    whole, others = (whole_pass(name, tokens) for tokens in (TEXTS, OTHERS))
    tokens, ids = OTHERS.copy(), np.zeros_like(OTHERS)  # padding is no special token
    tokens[0, 9:], ids[0, 9:] = TEXTS[0, :31], 1
    tokens[1, :25], ids[1, :25] = TEXTS[1, :25], 1
    logits, cache = apply(variables, tokens, segment_ids=ids, cache=model.init_cache(2))
    close(logits[0, 9:], whole[0, :31])
    close(logits[1, :25], whole[1, :25])

    steps = cache
    for read in range(9):
        np.testing.assert_array_equal(steps.position, read + np.array([31, 25]))
        logits, steps = apply(variables, TEXTS[rows, steps.position][:, None], cache=steps)
        close(logits[:, 0], whole[rows, steps.position - 1])

    if not has_constant_state(CONFIGS[name]):
        return  # with a cache of softmax attention, a row is one document
    # The first document goes on, another begins anew, and the cache is that of the last one.
    tokens, ids = np.zeros_like(TEXTS), np.zeros_like(TEXTS)
    tokens[0, :9], tokens[1, :9] = TEXTS[0, 31:], TEXTS[1, 25:34]
    tokens[:, 9:29] = OTHERS[:, :20]
    ids[:, :9], ids[:, 9:29] = 5, 2
    logits, cache = apply(variables, tokens, segment_ids=ids, cache=cache)
    close(logits[0, :9], whole[0, 31:])
    close(logits[1, :9], whole[1, 25:34])
    close(logits[:, 9:29], others[:, :20])
    logits, cache = apply(variables, OTHERS[:, 20:21], cache=cache)
    close(logits[:, 0], others[:, 20])
    assert cache.position.tolist() == [21, 21]


@pytest.mark.slow
def test_remat_changes_memory_alone():
    def gradient(**overrides):
        model, variables = make("transnormer_llm", num_layers=4, lrpe_layers=(), **overrides)

        def loss(variables):
            return jax.nn.logsumexp(model.apply(variables, TEXTS)).mean()

        compiled = jax.jit(jax.grad(loss)).lower(variables).compile()
        return compiled(variables), compiled.memory_analysis().temp_size_in_bytes

    expected, size = gradient()
    for remat in ("dots", "full"):
        rematerialised, smaller = gradient(remat=remat)
        for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(rematerialised), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
        assert smaller < size


@pytest.mark.slow
def test_bfloat16_computes_over_float32_parameters():
    model, variables = make("transnormer_llm")
    half, half_variables = make("transnormer_llm", dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(half_variables)} == {jnp.dtype("float32")}
    expected = whole_pass("transnormer_llm", TEXTS)
    ids = np.ones_like(TEXTS)
    logits, cache = apply_of(half)(variables, TEXTS, segment_ids=ids, cache=model.init_cache(2))
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in cache.states} == {jnp.dtype("float32")}
    assert np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)) < 0.03


def test_initialisation():
    model = TransNormerLLM(TransNormerLLMConfig.preset("tiny", init_std=0.2, use_bias=True, lrpe_layers=()))
    params = jax.jit(model.init)(jax.random.key(0), TEXTS[:1, :1])["params"]
    assert not params["embedding"][0].any()
    np.testing.assert_allclose(params["layers_0"]["attention"]["q"]["kernel"].std(), 0.2, rtol=0.05)
    assert not params["layers_0"]["attention"]["q"]["bias"].any()
    # The stacked layers are drawn independently.
    kernel = params["layers_0"]["glu"]["out"]["kernel"]
    assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("name", "donate"), [("transnormer_llm", True), ("t2", False)])
def test_layers_with_parameters_of_their_own_are_the_same_model(name, donate):
    model, variables = make(name)
    params, ids = jax.tree.map(jnp.copy, variables["params"]), np.ones_like(TEXTS)
    expected, cache = apply_of(model)(variables, TEXTS, segment_ids=ids, cache=model.init_cache(2))
    stacked = params[max(name for name in params if name.startswith("layers"))]["glu"]["out"]["kernel"]

    own_config, own = unstack_layers(model.config, params, donate=donate)
    assert stacked.is_deleted() == donate
    unstacked = TransNormerLLM(own_config)
    logits, own_cache = jax.jit(unstacked.apply)({"params": own}, TEXTS, segment_ids=ids, cache=unstacked.init_cache(2))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    last = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), *own_cache.states[-2:])
    chex.assert_trees_all_close(last, jax.tree.map(lambda x: x[-2:], cache.states[-1]), atol=1e-5)
    shapes = jax.eval_shape(unstacked.init, jax.random.key(0), TEXTS)["params"]
    assert jax.tree.structure(own) == jax.tree.structure(shapes)
    assert unstack_layers(own_config, own) == (own_config, own)
