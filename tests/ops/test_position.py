"""Positions at any distance, rotation, reflection and sinusoids; more on LRPE is in test_elementwise.py."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import relative_rms
from transnormer_jax.errors import UserError
from transnormer_jax.ops import (
    householder,
    lrpe,
    lrpe_frequencies,
    random_unit_vector,
    rotary,
    rotary_frequencies,
    sinusoids,
)
from transnormer_jax.ops.position import angles

FAR = [10**7, 2**24 + 1, 123_456_789, 2**31 - 70]


@pytest.mark.usefixtures("optimized")
def test_angles_are_those_of_exact_arithmetic():
    # 1 / (2 pi) to 60 digits, and fractions: float64 itself is 2e-7 off at 2^31.
    per_radian = Fraction("0.159154943091895335768883763372514362034459645740456448747667")
    rng = np.random.default_rng(0)
    theta = np.concatenate([rng.uniform(-6, 6, 20), [1.0, 0.5, np.pi, 2 * np.pi, 1e-8]]).astype(np.float32)
    position = np.array([[0, 1, 100, *FAR, 2**31 - 1, -1, -(10**9), -(2**31)]], np.int32)
    actual = np.asarray(jax.jit(angles)(jnp.asarray(theta), jnp.asarray(position)))[0]
    for i, t in enumerate(position[0]):
        for j, frequency in enumerate(theta):
            turns = (Fraction(float(actual[i, j])) - Fraction(float(frequency)) * int(t)) * per_radian
            assert abs(turns - round(turns)) * 2 * np.pi < 1e-6, (t, frequency)


def test_angles_near_the_start_are_plain_products():
    theta = jnp.asarray(lrpe_frequencies(1, 64))[0]
    position = jnp.arange(4)[None]
    np.testing.assert_allclose(angles(theta, position)[0], np.outer(np.arange(4), theta), rtol=4e-7)


def lrpe_scores(q, k, theta, position):
    q, k = (lrpe(x, theta, position) for x in (q, k))
    return jnp.einsum("bthk,bshk->bhts", q.astype(jnp.float32), k.astype(jnp.float32), precision="highest")


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("start", FAR)
def test_lrpe_and_its_gradient_far_from_the_start(start):
    q, k = (np.asarray(x) for x in jax.random.normal(jax.random.key(0), (2, 1, 64, 2, 17)))
    theta = lrpe_frequencies(2, 17)
    position = start + np.arange(64)[None]

    def definition(q, k, theta):
        angle = position[..., None, None] * theta.astype(np.float64)
        scores = [np.einsum("bthk,bshk->bhts", q * wave(angle), k * wave(angle)) for wave in (np.cos, np.sin)]
        # d cos(theta (t - s)) / d theta = -(t - s) sin(theta (t - s)), of the sum of all scores.
        distance = position[0, :, None] - position[0]
        slope = -distance[..., None, None] * np.sin(distance[..., None, None] * theta.astype(np.float64))
        d_theta = np.einsum("bthk,bshk,tshk->hk", q, k, slope)
        return scores[0] + scores[1], d_theta

    scores, d_theta = definition(q.astype(np.float64), k.astype(np.float64), theta)
    q, k, theta, position = jnp.asarray(q), jnp.asarray(k), jnp.asarray(theta), jnp.asarray(position, jnp.int32)
    assert relative_rms(jax.jit(lrpe_scores)(q, k, theta, position), scores) <= 1e-5
    by_row = jax.vmap(lrpe_scores, in_axes=(0, 0, None, 0))(q[None], k[None], theta, position[None])
    assert relative_rms(by_row[0], scores) <= 1e-5
    narrow = jax.jit(lrpe_scores)(q.astype(jnp.bfloat16), k.astype(jnp.bfloat16), theta, position)
    assert relative_rms(narrow, scores) <= 5e-3
    # Each of q and k receives terms `start` times as large as their sum.
    gradient = jax.jit(jax.grad(lambda theta: lrpe_scores(q, k, theta, position).sum()))(theta)
    assert np.abs(gradient - d_theta).max() <= 1e-6 * start * np.abs(q).sum()


@pytest.mark.slow
def test_gradient_of_theta():
    x, d = (np.asarray(a) for a in jax.random.normal(jax.random.key(0), (2, 2, 50, 2, 5)))
    d = np.concatenate([d, d[..., ::-1]], axis=-1)
    theta, position = lrpe_frequencies(2, 5), np.arange(1000, 1050, dtype=np.int32)[None]
    gradient = jax.grad(lambda theta: jnp.sum(lrpe(jnp.asarray(x), theta, jnp.asarray(position)) * d))(theta)
    angle = position[..., None, None] * theta.astype(np.float64)
    turned = np.concatenate([-x * np.sin(angle), x * np.cos(angle)], axis=-1) * d
    expected = np.sum(position[..., None, None] * (turned[..., :5] + turned[..., 5:]), axis=(0, 1))
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_rotary_and_sinusoids_far_from_the_start():
    q, k = (np.asarray(x) for x in jax.random.normal(jax.random.key(0), (2, 1, 64, 2, 8)))
    theta = rotary_frequencies(8)
    for start in FAR:
        position = jnp.asarray(start + np.arange(64)[None], jnp.int32)
        rotated = [jax.jit(rotary)(x, theta, position) for x in (q, k)]
        scores = np.einsum("bthk,bshk->bhts", *(np.asarray(x, np.float64) for x in rotated))
        angle = np.asarray(position, np.float64)[..., None, None] * theta.astype(np.float64)
        pairs = [(x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angle) for x in (q, k)]
        assert relative_rms(scores, np.einsum("bthk,bshk->bhts", pairs[0], pairs[1].conj()).real) <= 1e-5
        frequencies = np.float32([1, 10000 ** (-1 / 3), 10000 ** (-2 / 3), 1 / 10000]).astype(np.float64)
        angle = np.asarray(position, np.float64)[..., None] * frequencies
        expected = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
        np.testing.assert_allclose(jax.jit(sinusoids, static_argnums=1)(position, 8), expected, atol=2e-6)


@pytest.mark.slow
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


@pytest.mark.slow
def test_rotary_tells_positions_apart_in_bfloat16():
    x = jnp.ones((1, 4, 1, 2), jnp.bfloat16)
    turned = rotary(x, jnp.ones(1), jnp.array([[600, 601, 602, 603]]))
    angles = np.array([600, 601, 602, 603])
    np.testing.assert_allclose(turned[0, :, 0, 0].astype(jnp.float32), np.cos(angles) - np.sin(angles), atol=8e-3)


@pytest.mark.slow
def test_an_odd_feature_is_left_as_it_is():
    x = jax.random.normal(jax.random.key(0), (1, 4, 2, 7))
    theta, position = jnp.asarray(rotary_frequencies(7)), jnp.arange(4)[None]
    assert theta.shape == (3,)
    rotated = rotary(x, theta, position)
    np.testing.assert_array_equal(rotated[..., 6], x[..., 6])
    np.testing.assert_array_equal(rotated[..., :6], rotary(x[..., :6], theta, position))


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
    with pytest.raises(UserError, match="7 features cannot hold sinusoids"):
        sinusoids(jnp.arange(5)[None], 7)
