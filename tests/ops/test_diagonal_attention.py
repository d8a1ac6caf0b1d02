"""Diagonal attention against a dense matrix with the blocks masked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.ops import DiagonalState, diagonal_attention, resume_diagonal_attention

# Compiled without LLVM's optimisations, which take half of the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

IDS = [
    [5] * 11 + [2] * 7 + [9] * 5,
    [0] * 3 + [4] * 13 + [0] * 2 + [1] * 4 + [0],
]


def dense(q, k, v, block_size, weights, causal, ids):
    """Every pair of tokens, float64; the blocks of a document are counted from its first token."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    index = np.arange(q.shape[1])
    out = np.zeros(v.shape)
    for row, documents in enumerate(np.asarray(ids)):
        first = {document: index[documents == document][0] for document in set(documents)}
        block = np.array([(i - first[document]) // block_size for i, document in zip(index, documents, strict=True)])
        seen = (documents[:, None] == documents) & (documents != 0) & (block[:, None] == block)
        seen &= (index[:, None] >= index) | (not causal)
        scores = np.einsum("nhk,mhk->hnm", q[row], k[row]) / np.sqrt(q.shape[-1])
        if weights == "softmax":
            scores = np.exp(scores) * seen
            scores /= np.maximum(scores.sum(-1, keepdims=True), 1e-300)
        else:
            scores = np.maximum(scores, 0) * seen
        out[row] = np.einsum("hnm,mhv->nhv", scores, v[row])
    return out


def operands(length=23):
    keys = jax.random.split(jax.random.key(length), 3)
    return [jax.random.normal(key, (2, length, 3, width)) for key, width in zip(keys, (8, 8, 5), strict=True)]


@pytest.mark.parametrize("block_size", [1, 4, 64])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("weights", ["softmax", "relu"])
def test_equals_the_dense_form(weights, causal, block_size):
    q, k, v = operands()
    options = {"block_size": block_size, "weights": weights, "causal": causal}
    attention = jit(functools.partial(diagonal_attention, **options))
    out = attention(q, k, v)
    np.testing.assert_allclose(out, dense(q, k, v, block_size, weights, causal, np.ones((2, 23))), atol=2e-6)
    out = attention(q, k, v, segment_ids=jnp.array(IDS, jnp.int32))
    np.testing.assert_allclose(out, dense(q, k, v, block_size, weights, causal, IDS), atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["softmax", "relu"])
def test_any_cut_into_calls_gives_the_same(weights):
    q, k, v = operands()
    expected = diagonal_attention(q, k, v, block_size=4, weights=weights, causal=True)
    resume = jit(functools.partial(resume_diagonal_attention, weights=weights))
    for lengths in ([1] * 9 + [14], [3, 14, 3, 3], [23]):
        state = DiagonalState(jnp.zeros((2, 4, 3, 8)), jnp.zeros((2, 4, 3, 5)), jnp.zeros((2, 4), jnp.int32))
        outputs, start = [], 0
        for length in lengths:
            now = slice(start, start + length)
            position = jnp.arange(23)[None, now]
            out, state = resume(q[:, now], k[:, now], v[:, now], state, position)
            outputs.append(out)
            start += length
        np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), expected, atol=2e-6)


@pytest.mark.slow
def test_padding_counted_as_the_authors_do():
    q, k, v = operands(6)  # the last block has two tokens, and two keys of zeros
    attention = functools.partial(diagonal_attention, block_size=4, weights="softmax", causal=False)
    scores = np.exp(np.einsum("bnhk,bmhk->bhnm", q[:, 4:], k[:, 4:]) / np.sqrt(8))
    expected = np.einsum("bhnm,bmhv->bnhv", scores / (scores.sum(-1, keepdims=True) + 2), v[:, 4:])
    np.testing.assert_allclose(attention(q, k, v, count_padding=True)[:, 4:], expected, atol=2e-6)
    assert np.abs(attention(q, k, v)[:, 4:] - expected).max() > 0.01


def test_mistakes_are_told():
    q, k, v = operands(6)
    for change, message in [
        ({"weights": "relus"}, "unknown weights 'relus': did you mean 'relu'?"),
        ({"block_size": 0}, "block_size is 0"),
        ({"count_padding": True, "segment_ids": jnp.ones((2, 6), jnp.int32)}, "leave segment_ids out"),
    ]:
        arguments = {"block_size": 4, "weights": "relu", "causal": False} | change
        with pytest.raises(UserError, match=message.replace("?", r"\?")):
            diagonal_attention(q, k, v, **arguments)
