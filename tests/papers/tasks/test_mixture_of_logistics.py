"""The mixture is a distribution over bytes, from which its sampler draws, at any parameters."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from transnormer_jax.papers.tasks.mixture_of_logistics import mixture_of_logistics_nll, sample_mixture_of_logistics

BYTES = jnp.arange(256)
nll, sample = jax.jit(mixture_of_logistics_nll), jax.jit(sample_mixture_of_logistics)


def probabilities(raw):
    """[..., 3M] to [..., 256]."""
    spread = jnp.broadcast_to(raw[..., None, :], (*raw.shape[:-1], 256, raw.shape[-1]))
    targets = jnp.broadcast_to(BYTES.reshape((1,) * (raw.ndim - 1) + (256,)), spread.shape[:-1])
    return np.exp(-np.asarray(nll(spread, targets), np.float64))


@pytest.fixture(scope="module")
def raw():
    """[16, 30]: ten components, of which the narrowest are narrower than a bin and some lie outside [-1, 1]."""
    logits, mean, log_scale = jax.random.normal(jax.random.key(0), (3, 16, 10))
    return jnp.concatenate([2 * logits, 0.8 * mean, log_scale - 3], axis=-1)


def test_probabilities_equal_the_definition_in_float64(raw):
    logits, mean, log_scale = (x[..., None] for x in np.split(np.asarray(raw, np.float64), 3, axis=-1))
    edges = (2 * np.arange(257) - 1) / 255 - 1
    edges[0], edges[-1] = -np.inf, np.inf
    cdf = stats.logistic.cdf((edges - mean) / np.exp(log_scale))
    expected = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) * np.diff(cdf)).sum(1)
    # Below 1e-5, a component counts with its density times the width of the bin.
    np.testing.assert_allclose(probabilities(raw), expected, rtol=1e-4, atol=1e-5)


def test_probabilities_sum_to_one(raw):
    # Densities stand for masses in bins of less than 1e-5 only; at these scales those sum to the same.
    np.testing.assert_allclose(probabilities(raw).sum(-1), 1, atol=1e-4)
    wide = raw.at[..., 20:].set(jnp.maximum(raw[..., 20:], -3.5))
    np.testing.assert_allclose(probabilities(wide).sum(-1), 1, atol=1e-5)


def test_bins_of_little_mass_have_the_density_at_their_centre():
    mean, log_scale = -0.5, -4.0
    raw = jnp.array([0.0, mean, log_scale])
    centre = 2 * 200 / 255 - 1
    density = stats.logistic.logpdf(centre, mean, np.exp(log_scale))
    assert density - np.log(127.5) < np.log(1e-5)
    np.testing.assert_allclose(nll(raw, jnp.array(200)), np.log(127.5) - density, rtol=1e-6)
    # -7 is the least log-scale, for the loss and for the sampler.
    np.testing.assert_array_equal(probabilities(jnp.array([0.0, 0.1, -9])), probabilities(jnp.array([0.0, 0.1, -7])))


def test_one_narrow_component_is_one_byte():
    for byte in (0, 1, 77, 254, 255):
        raw = jnp.array([0.0, 2 * byte / 255 - 1, -20.0])
        assert probabilities(raw).argmax() == byte
        assert probabilities(raw)[byte] > 0.97
        samples = sample(jax.random.key(0), jnp.broadcast_to(raw, (2000, 3)))
        np.testing.assert_allclose(np.mean(samples == byte), probabilities(raw)[byte], atol=0.02)


def test_samples_follow_the_probabilities(raw):
    count = 20_000
    for i, parameters in enumerate(raw[:4]):
        samples = sample(jax.random.key(i), jnp.broadcast_to(parameters, (count, 30)))
        assert samples.dtype == jnp.int32
        expected = probabilities(parameters) * count
        observed = np.bincount(samples, minlength=256)
        often = expected >= 5
        expected = np.append(expected[often], expected[~often].sum())
        observed = np.append(observed[often], observed[~often].sum())
        chi_square = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
        # Keys are fixed; for fresh ones the bound would be passed once in 10,000 times.
        assert chi_square < stats.chi2.isf(1e-4, len(expected) - 1)


@pytest.mark.slow
def test_loss_and_gradient_are_finite_at_extremes():
    values = (0.0, 1.0, -1.0, 30.0, -30.0, 1e4, -1e4, 1e12, -1e12)
    raw = jnp.array(list(itertools.product(values, values)))
    logits = jnp.linspace(-1e4, 1e4, len(raw))[:, None]
    raw = jnp.concatenate([logits, -logits, raw[:, :1], raw[::-1, :1], raw[:, 1:], raw[::-1, 1:]], axis=1)
    raw = jnp.repeat(raw[:, None], 5, axis=1)
    target = jnp.broadcast_to(jnp.array([0, 1, 128, 254, 255]), raw.shape[:2])
    loss, gradient = jax.jit(jax.vmap(jax.vmap(jax.value_and_grad(mixture_of_logistics_nll))))(raw, target)
    assert np.isfinite(loss).all()
    assert np.isfinite(gradient).all()
    assert np.isfinite(nll(raw.astype(jnp.bfloat16), target)).all()


@pytest.mark.slow
def test_gradient_equals_that_of_the_definition_in_float64(raw):
    wide = raw.at[:, 20:].set(jnp.clip(raw[:, 20:], -2, 0))
    target = 1 + jnp.arange(16) * 16
    gradient = jax.jit(jax.grad(lambda raw: mixture_of_logistics_nll(raw, target).sum()))(wide)

    def definition(raw):
        logits, mean, log_scale = jnp.split(raw, 3, axis=-1)
        edges = (2 * target[:, None] + jnp.array([[-1, 1]])) / 255 - 1
        cdf = jax.nn.sigmoid((edges[..., None] - mean[:, None]) / jnp.exp(log_scale)[:, None])
        return -jnp.log(jnp.sum(jax.nn.softmax(logits) * (cdf[:, 1] - cdf[:, 0]), axis=-1)).sum()

    with jax.enable_x64(True):
        expected = jax.jit(jax.grad(definition))(np.asarray(wide, np.float64))
    # At these scales, densities stand for masses with an error of less than 2e-4.
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-5)
