"""TransNormerLLM against outputs of the released code on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.shared import shared_file
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def golden():
    with np.load(shared_file("golden/tnl/a_pow2heads.npz")) as arrays:
        return {key: arrays[key] for key in arrays}


@pytest.fixture(scope="module")
def model():
    config = TransNormerLLMConfig(
        vocab_size=61, num_layers=3, model_dim=32, num_heads=4, glu_dim=48, init_std=0.2, dtype="float32"
    )
    return TransNormerLLM(config)


@pytest.fixture(scope="module")
def variables(golden):
    def weight(layer, name):
        return golden[f"param/model.layers.{layer}.{name}.weight"].T  # torch stores (out, in)

    def block(layer):
        qkvu, out = weight(layer, "token_mixer.qkvu_proj"), weight(layer, "token_mixer.out_proj")
        attention = {name: {"kernel": kernel} for name, kernel in zip("qkvu", np.split(qkvu, 4, axis=1), strict=True)}
        attention["out"] = {"kernel": out}
        if layer == 0:
            attention["theta"] = golden["param/model.layers.0.token_mixer.lrpe.theta"][:, 0]
        glu = {
            name: {"kernel": weight(layer, f"channel_mixer.{theirs}")}
            for name, theirs in {"gate": "l1", "value": "l2", "out": "l3"}.items()
        }
        return {"attention": attention, "glu": glu}

    def stack(*blocks):
        return jax.tree.map(lambda *x: jnp.stack(x), *blocks)

    embedding = jnp.asarray(golden["param/model.embed_tokens.weight"])
    return {"params": {"embedding": embedding, "layers_0": stack(block(0)), "layers_1": stack(block(1), block(2))}}


def tokens(golden, name):
    return jnp.asarray(golden[name], jnp.int32)


def test_logits_and_hidden_states(golden, model, variables):
    logits, captured = model.apply(variables, tokens(golden, "ids"), mutable=["intermediates"])
    np.testing.assert_allclose(logits, golden["logits"], atol=TOLERANCE)
    hidden = np.concatenate([captured["intermediates"][group]["hidden"][0] for group in ("layers_0", "layers_1")])
    np.testing.assert_allclose(hidden[0], golden["hidden_1"], atol=TOLERANCE)
    np.testing.assert_allclose(hidden[1], golden["hidden_2"], atol=TOLERANCE)
    final, _ = model.apply(variables, tokens(golden, "ids"), method="hidden")
    np.testing.assert_allclose(final, golden["hidden_3"], atol=TOLERANCE)


def test_prefill_and_decoding(golden, model, variables):
    logits, cache = model.apply(variables, tokens(golden, "ids"), cache=model.init_cache(2))
    np.testing.assert_allclose(logits, golden["logits"], atol=TOLERANCE)
    for layer, state in enumerate((cache.states[0][0], cache.states[1][0], cache.states[1][1])):
        np.testing.assert_allclose(state, golden[f"prefill_state_{layer}"], atol=TOLERANCE)
    for step in range(5):
        logits, cache = model.apply(variables, tokens(golden, "next_ids")[:, step : step + 1], cache=cache)
        np.testing.assert_allclose(logits[:, 0], golden["decode_logits"][:, step], atol=TOLERANCE)
    for layer, state in enumerate((cache.states[0][0], cache.states[1][0], cache.states[1][1])):
        np.testing.assert_allclose(state, golden[f"decode_state_{layer}"], atol=TOLERANCE)


def test_left_padding(golden, model, variables):
    mask = tokens(golden, "pad_mask")
    logits = model.apply(variables, tokens(golden, "pad_ids"), segment_ids=mask)
    np.testing.assert_allclose(logits[mask == 1], golden["pad_logits"][mask == 1], atol=TOLERANCE)


def test_long_row(golden, model, variables):
    logits = model.apply(variables, tokens(golden, "long_ids"))
    np.testing.assert_allclose(logits[:, -8:], golden["long_logits_last8"], atol=TOLERANCE)
