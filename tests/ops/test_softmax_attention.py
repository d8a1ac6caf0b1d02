"""Softmax attention: documents, padding, and the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.ops import KeyValueCache, resume_softmax_attention, softmax_attention


def operands(length):
    return jax.random.normal(jax.random.key(length), (3, 2, length, 3, 8))


def dense(q, k, v, seen):
    scores = np.exp(np.einsum("bnhk,bmhk->bhnm", q, k) / np.sqrt(8)) * seen[:, None]
    return np.einsum("bhnm,bmhv->bnhv", scores / scores.sum(-1, keepdims=True), v)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_formula_for_real_tokens(causal):
    q, k, v = operands(13)
    ids = np.array([[0, 0, 5, 5, 5, 5, 2, 2, 2, 0, 0, 0, 0], [1] * 12 + [0]], np.int32)
    real = ids != 0
    seen = (ids[:, :, None] == ids[:, None, :]) & (np.tri(13, dtype=bool) | (not causal))
    expected = dense(q, k, v, seen)
    k, v = (jnp.where(real[..., None, None], x, jnp.inf) for x in (k, v))
    out = softmax_attention(q, k, v, causal=causal, segment_ids=jnp.asarray(ids))
    np.testing.assert_allclose(out[real], expected[real], atol=2e-6)
    assert np.isfinite(out).all()


@pytest.mark.slow
def test_rows_of_a_cache_have_places_of_their_own():
    q, k, v = operands(9)
    expected = softmax_attention(q, k, v, causal=True)
    cache = KeyValueCache(jnp.zeros((2, 12, 3, 8)), jnp.zeros((2, 12, 3, 8)))
    read = np.array([4, 6])
    for row, count in enumerate(read):  # what the other row writes here is overwritten or not seen
        now = slice(0, int(count))
        _, new = jax.jit(resume_softmax_attention)(q[:, now], k[:, now], v[:, now], cache, jnp.arange(9)[None, now])
        cache = jax.tree.map(lambda old, new, row=row: old.at[row].set(new[row]), cache, new)
    position = jnp.asarray(read)[:, None] + jnp.arange(3)[None]
    new = [jnp.take_along_axis(x, position[..., None, None], axis=1) for x in (q, k, v)]
    out, _ = jax.jit(resume_softmax_attention)(*new, cache, position)
    np.testing.assert_allclose(out, jnp.take_along_axis(expected, position[..., None, None], axis=1), atol=2e-6)
