"""Rotation, reflection and sinusoids; LRPE of TransNormerLLM is in test_elementwise.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.ops import householder, random_unit_vector, rotary, rotary_frequencies, sinusoids


def test_rotary_depends_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 2, 8))
    theta = jnp.asarray(rotary_frequencies(8))

    def score(t, s):
        return jnp.sum(rotary(q, theta, jnp.array([[t]])) * rotary(k, theta, jnp.array([[s]])), axis=-1)

    np.testing.assert_allclose(score(9, 4), score(1009, 1004), rtol=1e-4, atol=1e-4)
    # As complex numbers: Re(q conj(k) e^(i theta (t - s))).
    pairs = [np.asarray(x)[..., 0::2] + 1j * np.asarray(x)[..., 1::2] for x in (q, k)]
    expected = np.real(pairs[0] * np.conj(pairs[1]) * np.exp(5j * np.asarray(theta))).sum(-1)
    np.testing.assert_allclose(score(9, 4), expected, rtol=1e-5, atol=1e-5)


def test_rotary_tells_positions_apart_in_bfloat16():
    x = jnp.ones((1, 4, 1, 2), jnp.bfloat16)
    turned = rotary(x, jnp.ones(1), jnp.array([[600, 601, 602, 603]]))
    angles = np.array([600, 601, 602, 603])
    np.testing.assert_allclose(turned[0, :, 0, 0].astype(jnp.float32), np.cos(angles) - np.sin(angles), atol=8e-3)


def test_householder_is_a_reflection():
    v = random_unit_vector(jax.random.key(0), (8,), jnp.float32)
    x = jax.random.normal(jax.random.key(1), (3, 5, 8))
    np.testing.assert_allclose(householder(v, v), -v, atol=1e-6)
    np.testing.assert_allclose(householder(householder(x, v), v), x, atol=1e-6)
    np.testing.assert_allclose(jnp.linalg.norm(householder(x, v), axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)


def test_sinusoids():
    table = sinusoids(jnp.arange(5)[None], 8)
    assert table.dtype == jnp.float32
    frequencies = np.array([1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1 / 10000])
    angles = np.arange(5)[:, None] * frequencies
    np.testing.assert_allclose(table[0], np.concatenate([np.sin(angles), np.cos(angles)], axis=1), atol=1e-6)


def test_mistakes_are_told():
    with pytest.raises(UserError, match="7 features per head cannot be rotated in pairs"):
        rotary_frequencies(7)
    with pytest.raises(UserError, match="7 features cannot hold sinusoids"):
        sinusoids(jnp.arange(5)[None], 7)
