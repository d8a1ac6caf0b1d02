"""Normalised linear attention is a weighted mean of the values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.ops import normalized_linear_attention


@pytest.mark.slow
def test_normalized_is_a_weighted_mean():
    q, k = jax.nn.elu(jax.random.normal(jax.random.key(0), (2, 2, 70, 3, 8))) + 1
    v = jax.random.normal(jax.random.key(1), (2, 70, 3, 5))
    out, state = normalized_linear_attention(q, k, v, eps=0.0)
    scores = np.einsum("bnhk,bmhk->bhnm", q, k) * np.tril(np.ones((70, 70)))
    expected = np.einsum("bhnm,bmhv->bnhv", scores / scores.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(out, expected, rtol=2e-5, atol=2e-5)
    again, _ = normalized_linear_attention(q[:, :1], k[:, :1], v[:, :1], eps=0.0, initial_state=state)
    assert again.shape == (2, 1, 3, 5)


@pytest.mark.slow
def test_normalized_sums_may_leave_the_range_of_float16():
    # Denominators of about 9,000 and of 0: the largest float16 is 65,504, and 1 / eps^2 is larger.
    k = 8 * jnp.ones((1, 160, 1, 4), jnp.float16)
    v = jax.random.normal(jax.random.key(0), (1, 160, 1, 4), jnp.float16)
    ids = jnp.repeat(jnp.array([[0, 1, 0]]), jnp.array([10, 140, 10]), axis=1, total_repeat_length=160)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def mean(q, k, v):
        out, _ = normalized_linear_attention(q, k, v, segment_ids=ids)
        return out.astype(jnp.float32).sum(), out

    (_, out), gradients = mean(32 * k, k, v)
    expected = np.cumsum(np.asarray(v[0, 10:150, 0], np.float64), axis=0) / np.arange(1, 141)[:, None]
    np.testing.assert_allclose(out[0, 10:150, 0], expected, atol=2e-3)
    assert all(jnp.isfinite(gradient).all() for gradient in gradients)
