"""TransNormer and its baselines as whole models, against outputs of the reference implementations on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.shared import shared_file
from transnormer_jax.models import TransNormer, TransNormerConfig
from transnormer_jax.ops import rotary_frequencies
from transnormer_jax.papers.config import BaselineConfig
from transnormer_jax.tasks import CausalLM

TOLERANCE = 2e-5


def load(name: str) -> tuple[dict[str, np.ndarray], dict]:
    with np.load(shared_file(f"golden/{name}.npz")) as file:
        arrays = {key: jnp.asarray(file[key], jnp.float32) if "ids" not in key else file[key] for key in file}
    return arrays, json.loads(shared_file(f"golden/{name}.json").read_text())["config"]


def assert_close(actual, expected) -> None:
    """Within 2e-5 of the array's own scale (root mean square), or of one if that is less."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * max(1.0, np.sqrt(np.mean(expected**2))))


def dense(arrays, name: str) -> dict[str, jax.Array]:
    weight = arrays[f"param/{name}.weight"]
    bias = arrays.get(f"param/{name}.bias", jnp.zeros(len(weight)))
    return {"kernel": weight.T, "bias": bias}


def layer_norm(arrays, name: str) -> dict[str, jax.Array]:
    return {"scale": arrays[f"param/{name}.weight"], "bias": arrays[f"param/{name}.bias"]}


def transnormer_layers(arrays, num_layers: int) -> dict:
    def layer(i):
        attention = {ours: dense(arrays, f"layers.{i}.self_attn.{theirs}") for ours, theirs in PROJECTIONS.items()}
        theta = arrays[f"param/layers.{i}.self_attn.urpe.theta"][0, 0]
        attention["theta_offset"] = theta - rotary_frequencies(2 * len(theta))
        attention["householder"] = arrays[f"param/layers.{i}.self_attn.urpe.v"]
        glu = {ours: dense(arrays, f"layers.{i}.glu.{theirs}") for ours, theirs in GLU.items()}
        return {"attention": attention, "glu": glu}

    return {f"layers_{i}": stacked(layer(i)) for i in range(num_layers)}


def stacked(layer: dict) -> dict:
    """A layer by itself, as a stack of one."""
    return jax.tree.map(lambda x: x[None], layer)


PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
GLU = {"gate": "l1", "value": "l2", "out": "l3"}


def transnormer_config(theirs: dict, **fields) -> TransNormerConfig:
    return TransNormerConfig(
        vocab_size=theirs["vocab"],
        num_layers=theirs["layers"],
        model_dim=theirs["embed"],
        num_heads=theirs["heads"],
        attention=theirs["variant"].lower(),
        feed_forward_dim=theirs["glu_hidden"],
        glu_activation=theirs["glu_gate"].split()[0],
        block_size=theirs["block"],
        max_length=128,
        dtype="float32",
        scan_layers=False,
        **fields,
    )


CAUSAL = ["tn_lm_t2_head_identity_gate", pytest.param("tn_lm_t1_silu", marks=pytest.mark.slow)]


def causal_language_model(name: str):
    """Arrays, the model, and its parameters."""
    arrays, theirs = load(name)
    params = {"embedding": arrays["param/embed_tokens.weight"], **transnormer_layers(arrays, theirs["layers"])}
    return arrays, TransNormer(transnormer_config(theirs)), params


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_hidden_states_and_logits(name):
    arrays, model, params = causal_language_model(name)
    ids = jnp.asarray(arrays["in/ids"], jnp.int32)
    apply = jax.jit(lambda params: model.apply({"params": params}, ids, mutable=["intermediates"]))
    logits, captured = apply(params)
    assert_close(logits, arrays["out/logits"])
    for i in range(model.config.num_layers):
        assert_close(captured["intermediates"][f"layers_{i}"]["hidden"][0], arrays[f"out/hidden_{i + 1}"])


@pytest.mark.slow
@pytest.mark.parametrize("name", CAUSAL)
def test_loss_and_gradient(name):
    arrays, model, params = causal_language_model(name)
    ids = jnp.asarray(arrays["in/ids"], jnp.int32)

    def loss(params):
        batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:], "segment_ids": jnp.ones_like(ids[:, 1:])}
        sums = CausalLM(model).loss_and_metrics(params, batch)
        return sums.loss / sums.predictions

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    assert_close(value, arrays["out/loss_nats"][0])
    assert_close(gradient["embedding"], arrays["grad/embed_tokens.weight"])
    for i in range(model.config.num_layers):
        ours = jax.tree.map(lambda x: x[0], gradient[f"layers_{i}"]["attention"])
        if f"grad/layers.{i}.self_attn.k_proj.weight" in arrays:
            assert_close(ours["k"]["kernel"].T, arrays[f"grad/layers.{i}.self_attn.k_proj.weight"])
            assert_close(ours["theta_offset"], arrays[f"grad/layers.{i}.self_attn.urpe.theta"][0, 0])
        assert not np.any(ours["householder"])  # it is not trained


@pytest.mark.slow
def test_bidirectional_encoder():
    arrays, theirs = load("tn_encoder_t2_silu")
    # The authors let the zeros that fill the last block count as keys.
    config = transnormer_config(theirs, count_padding=True, **ROBERTA)
    embed = {
        "embedding": arrays["param/embed_tokens.weight"],
        "positions": arrays["param/embed_positions.weight"][2:],
        "embedding_norm": {
            "scale": arrays["param/layernorm_embedding.weight"],
            "bias": arrays["param/layernorm_embedding.bias"],
        },
    }
    params = embed | transnormer_layers(arrays, theirs["layers"])
    params["head_bias"] = jnp.zeros(theirs["vocab"])  # of the head, which is not in the file
    ids = jnp.asarray(arrays["in/ids"], jnp.int32)
    hidden, _ = jax.jit(lambda ids: TransNormer(config).apply({"params": params}, ids, method="hidden"))(ids)
    assert_close(hidden, arrays["out/features"])


ROBERTA = {
    name: getattr(TransNormerConfig.preset("masked_lm"), name)
    for name in ("causal", "norm_first", "final_norm", "position", "scale_embedding", "embedding_norm")
}


@pytest.mark.slow
def test_linformer_language_model():
    arrays, theirs = load("linformer_luc_lm")
    config = BaselineConfig(
        vocab_size=theirs["vocab"],
        num_layers=theirs["depth"],
        model_dim=theirs["dim"],
        num_heads=theirs["heads"],
        attention="linformer",
        causal=False,
        feed_forward="gelu",
        feed_forward_dim=theirs["ff_hidden"],
        norm="layer_norm",
        final_norm=False,
        position="learned",
        max_length=theirs["max_length"],
        scale_embedding=False,
        linformer_dim=(theirs["k"],),
        dtype="float32",
        scan_layers=False,
    )

    def layer(i):
        prefix = f"linformer.net.layers.{i}"
        names = {"q": "0.fn.to_q", "k": "0.fn.to_k", "v": "0.fn.to_v", "out": "0.fn.to_out"}
        attention = {ours: dense(arrays, f"{prefix}.{name}") for ours, name in names.items()}
        attention["project_k"] = {"kernel": arrays[f"param/{prefix}.0.fn.proj_k"].T}
        attention["project_v"] = {"kernel": arrays[f"param/{prefix}.0.fn.proj_v"].T}
        feed_forward = {"in": dense(arrays, f"{prefix}.1.fn.w1"), "out": dense(arrays, f"{prefix}.1.fn.w2")}
        return {
            "attention_norm": layer_norm(arrays, f"{prefix}.0.norm"),
            "attention": attention,
            "glu_norm": layer_norm(arrays, f"{prefix}.1.norm"),
            "feed_forward": feed_forward,
        }

    embed = {"embedding": arrays["param/token_emb.weight"], "positions": arrays["param/pos_emb.weight"]}
    params = embed | {f"layers_{i}": stacked(layer(i)) for i in range(theirs["depth"])}
    params["head_bias"] = jnp.zeros(theirs["vocab"])  # theirs has another head, below
    ids = jnp.asarray(arrays["in/ids"], jnp.int32)
    hidden, _ = jax.jit(lambda ids: TransNormer(config).apply({"params": params}, ids, method="hidden"))(ids)
    head = dense(arrays, "to_logits")
    assert_close(hidden @ head["kernel"] + head["bias"][None, None], arrays["out/logits"])
