"""Properties of the language model that hold for any weights, and for every mixer that can carry a state."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of
from transnormer_jax.errors import UserError
from transnormer_jax.models import (
    LanguageModel,
    ModelConfig,
    TransNormerConfig,
    TransNormerLLM,
    TransNormerLLMConfig,
    unstack_layers,
)
from transnormer_jax.models.block import has_constant_state

TRANSNORMER = {"num_layers": 4, "max_length": 128, "scale_embedding": False, "norm": "layer_norm"}
CONFIGS: dict[str, ModelConfig] = {
    "transnormer_llm": TransNormerLLMConfig.preset("tiny", num_layers=3, init_std=0.2),
    **{name: TransNormerConfig.preset("tiny", attention=name, **TRANSNORMER) for name in ("t2", "softmax")},
    "hybrid": TransNormerConfig.preset("tiny", attention="diag_t1,linear,performer,cosformer", **TRANSNORMER),
}
each_model = pytest.mark.parametrize("name", CONFIGS)

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


def make(name: str = "transnormer_llm", **overrides):
    config = CONFIGS[name].replace(**overrides)
    model = LanguageModel(config)
    tokens = jax.random.randint(jax.random.key(1), (2, 90), 3, config.vocab_size)
    return model, jax.jit(model.init)(jax.random.key(0), tokens), tokens


@pytest.mark.parametrize("preset", PARAMETERS)
def test_parameter_counts(preset):
    model = TransNormerLLM(TransNormerLLMConfig.preset(preset))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PARAMETERS[preset]


@pytest.mark.parametrize(
    "overrides",
    [
        *({"name": name} for name in CONFIGS),
        {"lrpe_layers": (0, 1, 2)},
        {"lrpe_layers": ()},
        {"lrpe_layers": (1,), "use_bias": True, "tie_embeddings": False, "scale_embedding": False},
        {"decay": "paper", "activation": "1+elu", "num_heads": 4},
        {"num_heads": 1, "backend": "associative_scan"},
    ],
    ids=str,
)
def test_prefill_and_decoding_equal_the_full_pass(overrides):
    model, variables, tokens = make(**overrides)
    whole = apply_of(model)(variables, tokens)
    step = jax.jit(lambda tokens, cache: model.apply(variables, tokens, cache=cache))
    logits, cache = step(tokens[:, :80], model.init_cache(2))
    pieces = [logits]
    for i in range(80, 90):
        logits, cache = step(tokens[:, i : i + 1], cache)
        pieces.append(logits)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=2e-4 * np.abs(whole).max())
    assert cache.position.tolist() == [90, 90]


def test_causality_by_gradient():
    model, variables, tokens = make()

    def logit_at_40(embedding):
        params = {**variables["params"], "embedding": embedding[0]}
        hidden, _ = apply_of(model)({"params": params}, tokens[:1], method="hidden")
        return hidden[0, 40].sum()

    # Give every position an embedding of its own, so that the gradient tells positions apart.
    length = 90
    model, _, _ = make(vocab_size=length)
    tokens = jnp.arange(length)[None]
    variables = jax.jit(model.init)(jax.random.key(0), tokens)
    gradient = jax.grad(logit_at_40)(variables["params"]["embedding"][None])[0]
    touched = np.abs(gradient).sum(-1) > 0
    assert touched[1:41].all()  # token 0 is the padding token, whose embedding is zero, but its gradient is not
    assert not touched[41:].any()


@each_model
def test_packed_documents_do_not_see_each_other(name: str):
    model, variables, tokens = make(name)
    ids = jnp.concatenate([jnp.full((2, 37), 1), jnp.full((2, 53), 2)], axis=1)
    packed = apply_of(model)(variables, tokens, segment_ids=ids)
    for part in (slice(0, 37), slice(37, 90)):
        alone = apply_of(model)(variables, tokens[:, part])
        np.testing.assert_allclose(packed[:, part], alone, atol=2e-4 * np.abs(alone).max())


@pytest.mark.parametrize("name", [name for name in CONFIGS if has_constant_state(CONFIGS[name])])
def test_packed_documents_go_on_from_a_cache(name: str):
    """The first document goes on, a later one begins anew, and the cache is that of the last one."""
    model, variables, tokens = make(name)
    apply = apply_of(model)
    _, cache = apply(variables, tokens[:, :21], cache=model.init_cache(2))
    ids = jnp.concatenate([jnp.full((2, 20), 5), jnp.full((2, 30), 2), jnp.zeros((2, 19))], axis=1).astype(jnp.int32)
    packed, after = apply(variables, tokens[:, 21:], segment_ids=ids, cache=cache)
    whole = apply(variables, tokens[:, :41])
    np.testing.assert_allclose(packed[:, :20], whole[:, 21:], atol=2e-4 * np.abs(whole).max())
    alone, alone_cache = apply(variables, tokens[:, 41:71], cache=model.init_cache(2))
    np.testing.assert_allclose(packed[:, 20:50], alone, atol=2e-4 * np.abs(alone).max())
    pieces = [apply(variables, tokens[:, 71:72], cache=x)[0] for x in (after, alone_cache)]
    np.testing.assert_allclose(*pieces, atol=2e-4 * np.abs(alone).max())


@each_model
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_matter(name: str, side: str):
    model, variables, tokens = make(name)
    alone, alone_cache = apply_of(model)(variables, tokens, cache=model.init_cache(2))
    pad = ((0, 0), (13, 0) if side == "left" else (0, 13))
    padded, ids = jnp.pad(tokens, pad), jnp.pad(jnp.ones_like(tokens), pad)
    logits, cache = apply_of(model)(variables, padded, segment_ids=ids, cache=model.init_cache(2))
    np.testing.assert_allclose(logits[ids == 1].reshape(alone.shape), alone, atol=1e-4 * np.abs(alone).max())
    for a, b in zip(jax.tree.leaves(cache), jax.tree.leaves(alone_cache), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(("name", "remat"), [("transnormer_llm", "dots"), ("transnormer_llm", "full"), ("t2", "full")])
def test_remat_changes_memory_alone(remat: str, name: str):
    model, variables, tokens = make(name)
    other, _, _ = make(name, remat=remat)

    def gradient(model):
        def loss(variables):
            return jax.nn.logsumexp(model.apply(variables, tokens)).mean()

        return jax.jit(jax.grad(loss)).lower(variables).compile()

    plain, rematerialised = gradient(model), gradient(other)
    for a, b in zip(jax.tree.leaves(plain(variables)), jax.tree.leaves(rematerialised(variables)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(a).max())
    saved = [x.memory_analysis().temp_size_in_bytes for x in (plain, rematerialised)]
    assert saved[1] < saved[0]


def test_bfloat16_computes_over_float32_parameters():
    model, variables, tokens = make()
    half, _, _ = make(dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0), tokens))} == {
        jnp.dtype("float32")
    }
    expected, (logits, cache) = (
        apply_of(model)(variables, tokens),
        apply_of(half)(variables, tokens, cache=half.init_cache(2)),
    )
    assert logits.dtype == jnp.float32
    assert {x.dtype for x in cache.states} == {jnp.dtype("float32")}
    assert np.sqrt(np.mean((logits - expected) ** 2) / np.mean(expected**2)) < 0.03


def test_initialisation():
    _, variables, _ = make(use_bias=True)
    params = variables["params"]
    assert not params["embedding"][0].any()
    np.testing.assert_allclose(params["layers_1"]["attention"]["q"]["kernel"].std(), 0.2, rtol=0.05)
    assert not params["layers_1"]["attention"]["q"]["bias"].any()
    # The stacked layers are drawn independently.
    kernel = params["layers_1"]["glu"]["out"]["kernel"]
    assert abs(np.corrcoef(kernel[0].ravel(), kernel[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 3}, "multiple of num_heads"),
        ({"lrpe_layers": (7,)}, "must lie in 0"),
        ({"remat": "some"}, "unknown remat 'some'"),
        ({"layers": 3}, "unknown model field 'layers'"),
    ],
)
def test_mistakes_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        TransNormerLLMConfig.preset("tiny", **fields)
    with pytest.raises(UserError, match="did you mean '385m'"):
        TransNormerLLMConfig.preset("385M")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lrpe_layers": (0, 1)},
        {"lrpe_layers": (), "tie_embeddings": False},
        {"name": "t2"},
        {"name": "softmax", "tie_embeddings": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("donate", [False, True])
def test_layers_with_parameters_of_their_own_are_the_same_model(options, donate):
    model, variables, tokens = make(**{"num_layers": 4} | options)
    config, tokens, params = model.config, tokens[:, :30], jax.device_put(variables["params"], jax.devices()[0])
    expected, cache = apply_of(model)({"params": params}, tokens, cache=model.init_cache(2))
    stacked = params[max(name for name in params if name.startswith("layers"))]["glu"]["out"]["kernel"]

    own_config, own = unstack_layers(config, params, donate=donate)
    assert stacked.is_deleted() == donate
    unstacked = TransNormerLLM(own_config)
    logits, own_cache = apply_of(unstacked)({"params": own}, tokens, cache=unstacked.init_cache(2))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(jnp.abs(expected).max()))
    last = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), *own_cache.states[-2:])
    chex.assert_trees_all_close(last, jax.tree.map(lambda x: x[-2:], cache.states[-1]), atol=1e-5)
    shapes = jax.eval_shape(unstacked.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.structure(own) == jax.tree.structure(shapes)
    assert unstack_layers(own_config, own) == (own_config, own)
