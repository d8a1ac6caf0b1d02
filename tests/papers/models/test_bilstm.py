"""The BiLSTM computes its equations on real frames, in both directions, and never sees padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.papers.models.bilstm import BiLSTM, BiLSTMConfig

LENGTHS = (7, 4, 1)


@pytest.fixture(scope="module")
def model():
    return BiLSTM(BiLSTMConfig(num_layers=2, hidden_dim=6))


@pytest.fixture(scope="module")
def frames():
    x = jax.random.normal(jax.random.key(0), (3, 7, 5))
    return x, (jnp.arange(7)[None] < jnp.array(LENGTHS)[:, None]).astype(jnp.int32)


@pytest.fixture(scope="module")
def variables(model, frames):
    shapes = jax.eval_shape(model.init, jax.random.key(0), *frames)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(shapes))))
    return jax.tree.map(lambda x: 0.5 * jax.random.normal(next(keys), x.shape), shapes)


def lstm(cell, x):
    """The definition, [N, D] to [N, hidden] in float64."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    cell = jax.tree.map(lambda x: np.asarray(x, np.float64), cell)
    h = c = np.zeros(cell["hi"]["bias"].shape)
    out = []
    for frame in x:
        i, f, g, o = (
            frame @ cell["i" + gate]["kernel"] + h @ cell["h" + gate]["kernel"] + cell["h" + gate]["bias"]
            for gate in "ifgo"
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        out.append(h)
    return np.stack(out)


@pytest.mark.slow
def test_output_equals_the_equations(model, variables, frames):
    out = jax.jit(model.apply)(variables, *frames)
    assert out.shape == (3, 7, 12)
    for row, length in enumerate(LENGTHS):
        x = np.asarray(frames[0][row, :length], np.float64)
        for layer in range(2):
            forward = lstm(variables["params"][f"forward_{layer}"]["cell"], x)
            backward = lstm(variables["params"][f"backward_{layer}"]["cell"], x[::-1])[::-1]
            x = np.concatenate([forward, backward], axis=1)
        np.testing.assert_allclose(out[row, :length], x, atol=1e-6)
        assert not out[row, length:].any()


@pytest.mark.slow
def test_padding_never_matters(model, variables, frames):
    x, segment_ids = frames

    def loss(variables, x):
        out = model.apply(variables, x, segment_ids)
        return jnp.sum(jnp.sin(out)), out

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (clean, d_clean), out = gradient(variables, x)
    for rubbish in (1e9, np.nan):
        (dirty, d_dirty), out_of_dirty = gradient(variables, jnp.where(segment_ids[..., None] == 0, rubbish, x))
        np.testing.assert_array_equal(out, out_of_dirty)
        for a, b in zip(jax.tree.leaves((clean, d_clean)), jax.tree.leaves((dirty, d_dirty)), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.abs(d_clean).max(-1) > 0, segment_ids)


@pytest.mark.slow
def test_every_frame_sees_every_real_frame(model, variables, frames):
    x, segment_ids = frames
    jacobian = jax.jit(jax.jacobian(lambda x: model.apply(variables, x[None], segment_ids[1:2])[0].sum(-1)))(x[1])
    seen = np.abs(jacobian).max(-1) > 0
    real = np.asarray(segment_ids[1]) != 0
    np.testing.assert_array_equal(seen, real[:, None] & real[None])


@pytest.mark.slow
def test_bfloat16_keeps_its_parameters_in_float32(model, variables, frames):
    half = BiLSTM(BiLSTMConfig(num_layers=2, hidden_dim=6, dtype="bfloat16"))
    shapes = jax.eval_shape(half.init, jax.random.key(0), *frames)
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    out = jax.jit(half.apply)(variables, *frames)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), jax.jit(model.apply)(variables, *frames), atol=0.05)


@pytest.mark.slow
def test_dropout_needs_a_key(model, variables, frames):
    dropping = BiLSTM(BiLSTMConfig(num_layers=2, hidden_dim=6, dropout=0.5))
    plain = jax.jit(model.apply)(variables, *frames)
    np.testing.assert_array_equal(jax.jit(dropping.apply)(variables, *frames), plain)
    dropped = jax.jit(dropping.apply)(variables, *frames, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - plain).max() > 0.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 0}, "must be a whole number, 1 or more"),
        ({"hidden_dim": 0}, "must be a whole number, 1 or more"),
        ({"dropout": 1.0}, "less than 1"),
    ],
)
def test_mistakes_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        BiLSTMConfig(**fields)
