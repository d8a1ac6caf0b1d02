"""LRPE, SimpleRMSNorm and activations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.ops import activation, lrpe, lrpe_frequencies, simple_rms_norm


@pytest.mark.slow
def test_lrpe_depends_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))
    theta = jnp.asarray(lrpe_frequencies(2, 8))

    def score(t, s):
        return jnp.sum(lrpe(q, theta, jnp.array([[t]])) * lrpe(k, theta, jnp.array([[s]])), axis=-1)

    np.testing.assert_allclose(score(7, 3), score(1007, 1003), rtol=1e-4, atol=1e-4)
    expected = jnp.sum(q * k * jnp.cos(4 * theta)[None, None], axis=-1)
    np.testing.assert_allclose(score(7, 3), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_lrpe_tells_positions_apart_in_bfloat16():
    # Positions in bfloat16 would be rounded to multiples of 4 near 600.
    x = jnp.ones((1, 4, 1, 8), jnp.bfloat16)
    encoded = lrpe(x, jnp.ones((1, 8)), jnp.array([[600, 601, 602, 603]]))
    np.testing.assert_allclose(encoded[0, :, 0, 0], np.cos([600, 601, 602, 603]), atol=4e-3)


def test_frequencies_span_all_channels():
    theta = lrpe_frequencies(4, 16).ravel()
    assert theta[0] == 1
    np.testing.assert_allclose(theta[1:] / theta[:-1], 10000 ** (-2 / 64), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_rms_norm_is_one(dtype):
    x = 300 * jax.random.normal(jax.random.key(0), (3, 5, 64)).astype(dtype)  # squares overflow float16
    y = simple_rms_norm(x)
    assert y.dtype == dtype
    np.testing.assert_allclose(np.sqrt(np.mean(np.square(y.astype(jnp.float32)), axis=-1)), 1, rtol=1e-2)


def test_rms_norm_at_zero():
    x = jnp.zeros((1, 4))
    assert not simple_rms_norm(x).any()
    np.testing.assert_allclose(jax.grad(lambda x: simple_rms_norm(x).sum())(x), 1e3, rtol=1e-5)


def test_activations():
    x = jnp.array([-2.0, 0.5])
    np.testing.assert_allclose(activation("swish")(x), x * jax.nn.sigmoid(x))
    np.testing.assert_allclose(activation("1+elu")(x), [np.exp(-2), 1.5], rtol=1e-6)
    with pytest.raises(UserError, match="did you mean 'silu'"):
        activation("siluu")
