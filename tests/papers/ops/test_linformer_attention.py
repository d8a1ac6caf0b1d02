"""Linformer against the reference implementations, and the properties of its projections."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.test_golden import load
from transnormer_jax.errors import UserError
from transnormer_jax.papers.ops.linformer_attention import (
    convolve_length,
    linformer_attention,
    linformer_linear_attention,
    pool_length,
    project_length,
)


def assert_near(actual, expected, tolerance):
    """Within a tolerance of the array's rms."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.sqrt(np.mean(np.square(expected))))


def inputs(seed, shape=(2, 24, 3, 8), rows=7):
    rng = np.random.default_rng(seed)
    q, k, v = (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(3))
    return q, k, v, jnp.asarray(rng.normal(size=(rows, shape[1])) / rows, jnp.float32)


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_golden_with_one_tensor_for_keys_and_values(wide):
    """The values are the very keys, and a row is shorter than the projection's columns."""
    golden = load("linformer_luc_share_kv_short")
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        weights = {name: jnp.asarray(golden[f"param/{name}"], dtype) for name in ("to_q.weight", "to_k.weight")}
        w_out, b_out = (jnp.asarray(golden[f"param/to_out.{name}"], dtype) for name in ("weight", "bias"))
        x, projection, d_out = (jnp.asarray(golden[name], dtype) for name in ("in/x", "param/proj_k", "in/cotangent"))

        @jax.jit
        def attend(x, projection):
            q, k = ((x @ weights[name].T).reshape(*x.shape[:2], 3, 8) for name in ("to_q.weight", "to_k.weight"))
            k = project_length(k, projection.T)
            return linformer_attention(q, k, k).reshape(x.shape) @ w_out.T + b_out[None, None]

        y, pull_back = jax.vjp(attend, x, projection)
        d_x, d_projection = pull_back(d_out)
        tolerance = 1e-9 if wide else 2e-5
        assert_near(y, golden["out/y"], tolerance)
        assert_near(d_x, golden["grad/x"], tolerance)
        assert_near(d_projection, golden["grad/proj_k"], tolerance)


@pytest.mark.parametrize("padded", [False, True])
def test_identity_is_softmax_attention(padded):
    """Padding is projected to zero keys and values, so it counts in the softmax, with the score 0, and adds nothing."""
    q, k, v, _ = inputs(0)
    real = np.arange(24)[None] < ([[24], [15]] if padded else [[24], [24]])
    ids = jnp.asarray(real, jnp.int32)
    projected = (project_length(x, jnp.eye(24), ids) for x in (k, v))
    scores = np.einsum("bihk,bjhk->bhij", q, k) / np.sqrt(8) * real[:, None, None]
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    expected = np.einsum("bhij,bjhk->bihk", weights * real[:, None, None], v)
    np.testing.assert_allclose(linformer_attention(q, *projected), expected, atol=2e-6)


def test_identity_is_linear_attention():
    q, k, v, _ = inputs(1)
    features = [np.where(x > 0, x + 1, np.exp(x)) for x in map(np.asarray, (q, k))]
    weights = np.einsum("bihk,bjhk->bhij", *features)
    expected = np.einsum("bhij,bjhk->bihk", weights / weights.sum(axis=-1, keepdims=True), v)
    projected = (project_length(x, jnp.eye(24)) for x in (k, v))
    np.testing.assert_allclose(linformer_linear_attention(q, *projected), expected, atol=2e-6)


def test_a_projection_per_head():
    _, k, _, _ = inputs(2)
    per_head = jnp.asarray(np.random.default_rng(3).normal(size=(3, 7, 24)), jnp.float32)
    rows = project_length(k, per_head)
    for head in range(3):
        np.testing.assert_allclose(
            rows[:, :, head], jnp.einsum("rn,bnk->brk", per_head[head], k[:, :, head]), atol=1e-5
        )


def test_more_tokens_than_columns():
    _, k, _, projection = inputs(4)
    with pytest.raises(UserError, match="24 tokens, but the Linformer was built for max_length=20: cut the rows"):
        project_length(k, projection[:, :20])


def project(kind, x, segment_ids):
    rng = np.random.default_rng(5)
    if kind == "learned":
        return project_length(x, jnp.asarray(rng.normal(size=(7, 30)), jnp.float32), segment_ids), None
    if kind == "convolution":
        # Of the size of an initial kernel: sums of 40 numbers of order 1 would round by more than what is compared.
        kernel = rng.normal(size=(5, 8, 8)) / np.sqrt(5 * 8)
        return convolve_length(x, jnp.asarray(kernel, jnp.float32), segment_ids)
    return pool_length(x, 5, kind, segment_ids)


@pytest.mark.parametrize("attention", [linformer_attention, linformer_linear_attention])
@pytest.mark.parametrize("kind", ["learned", "convolution", "mean", "max"])
def test_padding_never_leaks(kind, attention):
    """Neither what padding holds, nor how much of it stands behind a row, changes the row."""
    q, k, v, _ = inputs(6)
    ids = jnp.asarray(np.arange(24)[None] < [[24], [13]], jnp.int32)

    @jax.jit
    def attend(q, k, v, ids):
        (k, seen), (v, _) = project(kind, k, ids), project(kind, v, ids)
        return attention(q, k, v, seen)

    clean = attend(q, k, v, ids)
    dirty = attend(*(jnp.where(ids[..., None, None] == 0, big, x) for x, big in ((q, 1e9), (k, 1e9), (v, -1e9))), ids)
    np.testing.assert_array_equal(clean[1, :13], dirty[1, :13])
    assert np.isfinite(dirty).all()
    alone = attend(*(x[1:, :13] for x in (q, k, v)), None)
    np.testing.assert_allclose(clean[1:, :13], alone, atol=2e-6)
    only_padding = attend(q, k, v, jnp.zeros_like(ids))
    assert np.isfinite(only_padding).all()


@pytest.mark.slow
def test_windows():
    x = jnp.asarray(np.random.default_rng(7).normal(size=(1, 10, 2, 3)), jnp.float32)
    for kind, pool in (("mean", np.mean), ("max", np.max)):
        rows, seen = pool_length(x, 4, kind)
        assert seen is None
        expected = np.stack([pool(x[0, start : start + 4], axis=0) for start in (0, 4, 8)])
        np.testing.assert_allclose(rows[0], expected, atol=1e-6)
    averaging = jnp.broadcast_to(jnp.eye(3) / 4, (4, 3, 3))
    rows, _ = convolve_length(x[:, :8], averaging)
    np.testing.assert_allclose(rows, pool_length(x[:, :8], 4, "mean")[0], atol=1e-6)


@pytest.mark.slow
def test_half_precision_is_near():
    q, k, v, projection = inputs(8)
    for attention in (linformer_attention, linformer_linear_attention):
        exact = attention(q, project_length(k, projection), project_length(v, projection))
        q16, k16, v16 = (x.astype(jnp.bfloat16) for x in (q, k, v))
        out = attention(q16, project_length(k16, projection), project_length(v16, projection))
        assert out.dtype == jnp.bfloat16
        np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.05)


@pytest.mark.parametrize("attention", [linformer_attention, linformer_linear_attention])
def test_no_matrix_of_all_pairs(attention):
    q, k, v, projection = inputs(9, shape=(1, 1013, 2, 8), rows=31)

    def loss(q, k, v, projection):
        return attention(q, project_length(k, projection), project_length(v, projection)).sum()

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))).lower(q, k, v, projection).compile().as_text()
    assert "1013,1013" not in text
    assert "31,1013" in text
