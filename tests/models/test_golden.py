"""TransNormerLLM against outputs of the released code on random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiled import apply_of
from tests.shared import shared_file
from transnormer_jax.models import TransNormerLLM, TransNormerLLMConfig

# What users run is compared.
pytestmark = pytest.mark.usefixtures("optimized")


def assert_close(ours, theirs):
    """To 16 units in the last place of the largest number: what two orders of summation may differ by."""
    np.testing.assert_allclose(ours, theirs, atol=16 * 2**-23 * np.abs(theirs).max())


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
    logits, captured = apply_of(model)(variables, tokens(golden, "ids"), mutable="intermediates")
    assert_close(logits, golden["logits"])
    hidden = np.concatenate([captured["intermediates"][group]["hidden"][0] for group in ("layers_0", "layers_1")])
    assert_close(hidden[0], golden["hidden_1"])
    assert_close(hidden[1], golden["hidden_2"])


def test_prefill_and_decoding(golden, model, variables):
    logits, cache = apply_of(model)(variables, tokens(golden, "ids"), cache=model.init_cache(2))
    assert_close(logits, golden["logits"])
    for layer, state in enumerate((cache.states[0][0], cache.states[1][0], cache.states[1][1])):
        assert_close(state, golden[f"prefill_state_{layer}"])
    for step in range(5):
        logits, cache = apply_of(model)(variables, tokens(golden, "next_ids")[:, step : step + 1], cache=cache)
        assert_close(logits[:, 0], golden["decode_logits"][:, step])
    for layer, state in enumerate((cache.states[0][0], cache.states[1][0], cache.states[1][1])):
        assert_close(state, golden[f"decode_state_{layer}"])


@pytest.mark.slow
def test_left_padding(golden, model, variables):
    mask = tokens(golden, "pad_mask")
    logits = apply_of(model)(variables, tokens(golden, "pad_ids"), segment_ids=mask)
    assert_close(logits[mask == 1], golden["pad_logits"][mask == 1])


@pytest.mark.slow
def test_long_row(golden, model, variables):
    logits = apply_of(model)(variables, tokens(golden, "long_ids"))
    assert_close(logits[:, -8:], golden["long_logits_last8"])
