"""The Linformer's layer: the reference modules, its sharings, and what it refuses."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.test_golden import load
from tests.papers.ops.test_linformer_attention import assert_near
from tests.shared import shared_file
from transnormer_jax.errors import UserError
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.papers.mixers.linformer import LengthProjection, LinformerAttention
from transnormer_jax.papers.ops.linformer_attention import linformer_attention

WIDE = pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])


PLACES = TokenPositions(jnp.zeros((1, 1), jnp.int32))


def golden_of(name, wide):
    """Parameters and inputs of a file in the dtype of the comparison, the rest as it is; and its configuration."""
    dtype = np.float64 if wide else np.float32
    arrays = {key: jnp.asarray(x, dtype) if x.dtype == np.float32 else x for key, x in load(name).items()}
    return arrays, json.loads(shared_file(f"golden/{name}.json").read_text())["config"]


def dense(weight, bias=None):
    return {"kernel": weight.T, "bias": jnp.zeros(weight.shape[0], weight.dtype) if bias is None else bias}


def lucidrains(golden, prefix, config):
    """Module and parameters of one attention: E and F are [n, k], shared by the heads, and q, k, v have no biases."""
    module = LinformerAttention(
        num_heads=config["heads"],
        causal=False,
        projected_length=config["k"],
        max_length=config["max_length"],
        sharing="headwise",
        keys_are_values=config.get("share_kv", False),
        dtype=golden[f"{prefix}proj_k"].dtype,
        param_dtype=golden[f"{prefix}proj_k"].dtype,
    )
    keys = "k" if config.get("share_kv") else "kv"
    params = {name: dense(golden[f"{prefix}to_{name}.weight"]) for name in f"q{keys}"}
    params["out"] = dense(golden[f"{prefix}to_out.weight"], golden[f"{prefix}to_out.bias"])
    for name in keys:
        params[f"project_{name}"] = {"kernel": golden[f"{prefix}proj_{name}"].T}
    return module, params


def tatp22(golden, prefix, heads, segment_ids=None):
    """The function of x of one attention: a linear map per head without bias, and projections E and F with bias."""

    def project(letter, x):
        per_head = [
            {"kernel": golden[f"{prefix}heads.{h}.{letter}.weight"], "bias": golden[f"{prefix}heads.{h}.{letter}.bias"]}
            for h in range(heads)
        ]
        shared = all(np.array_equal(params["kernel"], per_head[0]["kernel"]) for params in per_head)
        params = per_head[0] if shared else jax.tree.map(lambda *x: jnp.stack(x), *per_head)
        rows, length = per_head[0]["kernel"].shape
        module = LengthProjection(rows, length, num_heads=None if shared else heads, use_bias=True)
        return module.apply({"params": params}, x, segment_ids)[0]

    def attend(x):
        q, k, v = (
            jnp.stack([x @ golden[f"{prefix}to_{name}.{h}.weight"].T for h in range(heads)], axis=2) for name in "qkv"
        )
        out = linformer_attention(q, project("E", k), project("F", v)).reshape(x.shape)
        return out @ golden[f"{prefix}w_o.weight"].T + golden[f"{prefix}w_o.bias"][None, None]

    return attend


def random_params(module, x):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, PLACES)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32), shapes)


def layer_norm(x, golden, prefix):
    x = (x - x.mean(axis=-1, keepdims=True)) / jnp.sqrt(x.var(axis=-1, keepdims=True) + 1e-5)
    return x * golden[f"{prefix}weight"][None, None] + golden[f"{prefix}bias"][None, None]


def feed_forward(x, golden, prefix, names):
    for i, name in enumerate(names):
        x = x @ golden[f"{prefix}{name}.weight"].T + golden[f"{prefix}{name}.bias"][None, None]
        x = x if i else jax.nn.gelu(x, approximate=False)
    return x


@pytest.mark.slow
@WIDE
@pytest.mark.parametrize("name", ["linformer_luc_default", "linformer_luc_share_kv_short"])
def test_golden_modules(name, wide):
    with jax.enable_x64(wide):
        golden, config = golden_of(name, wide)
        module, params = lucidrains(golden, "param/", config)

        @jax.jit
        def attend(x, e):
            return module.apply({"params": params | {"project_k": {"kernel": e.T}}}, x, PLACES)[0]

        y, pull_back = jax.vjp(attend, golden["in/x"], golden["param/proj_k"])
        d_x, d_e = pull_back(jnp.asarray(golden["in/cotangent"]))
        tolerance = 1e-9 if wide else 2e-5
        assert_near(y, golden["out/y"], tolerance)
        assert_near(d_x, golden["grad/x"], tolerance)
        assert_near(d_e, golden["grad/proj_k"], tolerance)


@WIDE
def test_golden_token_model(wide):
    with jax.enable_x64(wide):
        golden, config = golden_of("linformer_luc_lm", wide)

        @jax.jit
        def model(ids):
            x = jnp.asarray(golden["param/token_emb.weight"])[ids] + golden["param/pos_emb.weight"][None]
            for layer in range(config["depth"]):
                attention, feed = (f"param/linformer.net.layers.{layer}.{i}." for i in range(2))
                module, params = lucidrains(golden, f"{attention}fn.", config)
                x += module.apply({"params": params}, layer_norm(x, golden, f"{attention}norm."), PLACES)[0]
                x += feed_forward(layer_norm(x, golden, f"{feed}norm."), golden, f"{feed}fn.", ("w1", "w2"))
            return x @ golden["param/to_logits.weight"].T + golden["param/to_logits.bias"][None, None]

        assert_near(model(golden["in/ids"]), golden["out/logits"], 1e-9 if wide else 2e-5)


@WIDE
@pytest.mark.parametrize("name", ["linformer_tat_none", "linformer_tat_kv_masked"])
def test_golden_with_biases(name, wide):
    with jax.enable_x64(wide):
        golden, config = golden_of(name, wide)
        segment_ids = jnp.asarray(golden["in/mask"], jnp.int32) if config["masked"] else None
        y, pull_back = jax.vjp(jax.jit(tatp22(golden, "param/", config["heads"], segment_ids)), golden["in/x"])
        tolerance = 1e-9 if wide else 2e-5
        assert_near(y, golden["out/y"], tolerance)
        assert_near(pull_back(jnp.asarray(golden["in/cotangent"]))[0], golden["grad/x"], tolerance)


@WIDE
def test_golden_stack_of_different_lengths(wide):
    with jax.enable_x64(wide):
        golden, config = golden_of("linformer_tat_stack_headwise_reduced", wide)

        @jax.jit
        def stack(x):
            for part in range(2 * config["depth"]):
                prefix = f"param/seq.{part}."
                if part % 2:
                    added = feed_forward(x, golden, f"{prefix}fn.", ("w_1", "w_2"))
                else:
                    added = tatp22(golden, f"{prefix}fn.", config["heads"])(x)
                x = layer_norm(x + added, golden, f"{prefix}norm.")
            return x

        assert_near(stack(jnp.asarray(golden["in/x"])), golden["out/y"], 1e-9 if wide else 2e-5)


@pytest.mark.parametrize(
    ("projection", "sharing", "matrices"),
    [
        ("learned", "none", {"project_k": (2, 5, 30), "project_v": (2, 5, 30)}),
        ("learned", "headwise", {"project_k": (5, 30), "project_v": (5, 30)}),
        ("learned", "key_value", {"project_kv": (5, 30)}),
        ("convolution", "none", {"project_k": (2, 6, 4, 4), "project_v": (2, 6, 4, 4)}),
        ("convolution", "key_value", {"project_kv": (6, 4, 4)}),
        ("mean", "headwise", {}),
        ("max", "key_value", {}),
    ],
)
def test_what_is_shared(projection, sharing, matrices):
    module = LinformerAttention(2, False, 5, 30, projection=projection, sharing=sharing)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, 24, 8)), PLACES)["params"]
    assert {key: params[key]["kernel"].shape for key in params if key.startswith("project")} == matrices


@pytest.mark.parametrize(("projection", "attention"), [("learned", "softmax"), ("max", "linear")])
def test_padding_never_leaks(projection, attention):
    module = LinformerAttention(2, False, 5, 30, projection=projection, attention=attention)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 24, 8)), jnp.float32)
    ids = jnp.asarray(np.arange(24)[None] < [[24], [13]], jnp.int32)
    params = random_params(module, x)
    apply = jax.jit(lambda x: module.apply({"params": params}, x, PLACES._replace(segment_ids=ids)))
    (clean, state), (dirty, _) = apply(x), apply(jnp.where(ids[..., None] == 0, 1e9, x))
    assert state is None
    np.testing.assert_array_equal(clean[1, :13], dirty[1, :13])
    assert np.isfinite(dirty).all()
    assert np.abs(clean).min() > 0


@pytest.mark.parametrize("attention", ["softmax", "linear"])
def test_one_head_of_keys_and_values_is_the_same_one_in_all(attention):
    one, all_ = (
        LinformerAttention(3, False, 5, 30, attention=attention, head_dim=4, one_kv_head=one_kv_head, use_bias=True)
        for one_kv_head in (True, False)
    )
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 24, 8)), jnp.float32)
    params = random_params(one, x)
    shapes = [params[name]["kernel"].shape for name in ("q", "k", "v", "out")]
    assert shapes == [(8, 12), (8, 4), (8, 4), (12, 8)]
    assert params["project_k"]["kernel"].shape == (1, 5, 30)
    axes = {"k": -1, "v": -1, "project_k": 0, "project_v": 0}
    repeated = params | {
        name: jax.tree.map(lambda leaf, axis=axis: jnp.concatenate([leaf] * 3, axis), params[name])
        for name, axis in axes.items()
    }
    expected, _ = jax.jit(all_.apply)({"params": repeated}, x, PLACES)
    assert_near(jax.jit(one.apply)({"params": params}, x, PLACES)[0], expected, 2e-5)


def test_biases_of_the_projections_are_added_to_every_row():
    module = LinformerAttention(2, False, 5, 30, sharing="key_value", use_bias=True)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 24, 8)), jnp.float32)
    params = random_params(module, x)
    assert params["project_kv"]["bias"].shape == (5,)
    without = {**params, "project_kv": {"kernel": params["project_kv"]["kernel"]}}
    plain = LinformerAttention(2, False, 5, 30, sharing="key_value")
    out, expected = module.apply({"params": params}, x, PLACES)[0], plain.apply({"params": without}, x, PLACES)[0]
    assert np.abs(out - expected).max() > 1e-2
    zero = {**params, "project_kv": {**params["project_kv"], "bias": jnp.zeros(5)}}
    assert_near(module.apply({"params": zero}, x, PLACES)[0], expected, 1e-6)


@pytest.mark.slow
def test_cross_attention_reads_the_context_and_not_its_padding():
    module = LinformerAttention(2, False, 5, 30)
    rng = np.random.default_rng(4)
    x, context = (jnp.asarray(rng.normal(size=(2, n, 8)), jnp.float32) for n in (24, 17))
    params = random_params(module, x)
    apply = jax.jit(lambda x, **context: module.apply({"params": params}, x, PLACES, **context)[0])
    assert_near(apply(x, context=x), apply(x), 1e-6)
    ids = jnp.asarray(np.arange(17)[None] < [[17], [9]], jnp.int32)
    clean = apply(x, context=context, context_segment_ids=ids)
    dirty = apply(x, context=jnp.where(ids[..., None] == 0, 1e9, context), context_segment_ids=ids)
    np.testing.assert_array_equal(clean, dirty)
    assert clean.shape == x.shape
    assert np.abs(clean - apply(x, context=context))[1].max() > 1e-3


@pytest.mark.slow
def test_one_projection_for_all_layers():
    class Layers(nn.Module):
        @nn.compact
        def __call__(self, x, positions):
            shared = LengthProjection(5, 30, name="length_projection")
            for i in range(3):
                x += LinformerAttention(2, False, 5, 30, length_projection=shared, name=f"layers_{i}")(x, positions)[0]
            return x

    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 24, 8)), jnp.float32)
    params = random_params(Layers(), x)
    assert params["length_projection"]["kernel"].shape == (5, 30)
    assert set(params["layers_2"]) == {"q", "k", "v", "out"}
    gradient = jax.jit(jax.grad(lambda params: Layers().apply({"params": params}, x, PLACES).sum()))(params)
    assert np.abs(gradient["length_projection"]["kernel"])[:, :24].min() > 0


def test_refusals():
    x = jnp.zeros((1, 24, 8))
    key = jax.random.key(0)
    for module, message in (
        (LinformerAttention(2, True, 5, 30), "mixes all positions, later ones included: set causal=False"),
        (LinformerAttention(2, False, 5, 20), "24 tokens, but the Linformer was built for max_length=20: cut the rows"),
        (LinformerAttention(2, False, 5, 20, projection="mean"), "built for max_length=20"),
        (LinformerAttention(2, False, 5, 30, projection="convolve"), "did you mean 'convolution'"),
        (LinformerAttention(2, False, 5, 30, sharing="layerwise"), "unknown Linformer sharing 'layerwise'"),
        (LinformerAttention(2, False, 5, 30, attention="relu"), "choose one of: linear, softmax"),
    ):
        with pytest.raises(UserError, match=message):
            jax.eval_shape(module.init, key, x, PLACES)
    with pytest.raises(UserError, match="no causal form"):
        jax.eval_shape(lambda: LinformerAttention(2, False, 5, 30).init(key, x, PLACES, state=0))
