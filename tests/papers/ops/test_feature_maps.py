"""Random features estimate the softmax; cosFormer's features weigh by the cosine of the distance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.ops import normalized_linear_attention, softmax_attention
from transnormer_jax.papers.ops import cosformer_features, favor_features, orthogonal_gaussian


def test_directions_are_orthogonal_and_as_long_as_gaussian_vectors():
    directions = np.asarray(orthogonal_gaussian(jax.random.key(0), 4000, 16))
    run = directions[:16] / np.linalg.norm(directions[:16], axis=1, keepdims=True)
    np.testing.assert_allclose(run @ run.T, np.eye(16), atol=1e-5)
    # The squared length has mean K and variance 2 K; five standard errors.
    squares = np.square(directions).sum(axis=1)
    assert abs(squares.mean() - 16) < 5 * np.sqrt(32 / 4000)
    np.testing.assert_allclose(directions.mean(axis=0), 0, atol=5 / np.sqrt(4000))


@pytest.mark.slow
def test_key_features_have_mean_one_for_every_key():
    # E exp(w . x - |x|^2 / 2) = 1: what allows keys to subtract nothing. Five standard errors, and the floor.
    directions = orthogonal_gaussian(jax.random.key(0), 16_384, 8)
    k = 1.5 * jax.random.normal(jax.random.key(1), (1, 6, 1, 8))
    features = np.asarray(favor_features(k, directions, is_query=False)) * np.sqrt(16_384)
    error = features.std(axis=-1) / np.sqrt(16_384)
    assert (np.abs(features.mean(axis=-1) - 1) < 5 * error + 1e-4).all()


@pytest.mark.slow
def test_error_of_the_estimated_softmax_falls_with_the_features():
    # The variance of a weight grows as exp(|q + k|^2 / sqrt(K)) / M (lemma 2), so queries and keys are small here.
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 40, 2, 8)) * jnp.array([0.5, 0.5, 1]).reshape(3, 1, 1, 1, 1)
    exact = softmax_attention(q, k, v, causal=True)

    @functools.partial(jax.jit, static_argnums=0)
    def error(num_features):
        directions = orthogonal_gaussian(jax.random.key(1), num_features, 8)
        features = [favor_features(x, directions, is_query=is_query) for x, is_query in ((q, True), (k, False))]
        return jnp.sqrt(jnp.mean((normalized_linear_attention(*features, v)[0] - exact) ** 2))

    few, many = error(64), error(4096)
    assert many < 0.05
    assert many < few / 3  # 1 / sqrt(M) would be 8


@pytest.mark.slow
def test_features_stay_finite_and_positive_for_large_heads():
    directions = orthogonal_gaussian(jax.random.key(0), 256, 256)
    along = directions[:1, None, None] * 256**0.25  # the key for which an exponent is largest, |w|^2 / 2 > 88
    for x in (along, -along, 1e6 * along, 0 * along):
        for is_query in (True, False):
            features = favor_features(x, directions, is_query=is_query)
            assert np.isfinite(features).all()
            assert (features > 0).all()


@pytest.mark.slow
def test_cosformer_weights():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 12, 2, 4))
    position = jnp.arange(12)[None]
    features = [cosformer_features(x, position, 12) for x in (q, k)]
    assert all((x >= -1e-6).all() for x in features)
    weights = np.einsum("bnhk,bmhk->bhnm", *features)
    cosine = np.cos(np.pi / 24 * (np.arange(12)[:, None] - np.arange(12)))
    expected = np.einsum("bnhk,bmhk->bhnm", np.maximum(q, 0), np.maximum(k, 0)) * cosine
    np.testing.assert_allclose(weights, expected, atol=1e-5)
