"""Documents of packed rows mean the same to every attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.ops import diagonal_attention, linear_attention, softmax_attention
from transnormer_jax.ops.linear_attention.segments import find_segments
from transnormer_jax.papers.ops import lsh_attention

ATTENTIONS = {
    "linear": lambda q, k, v, ids: linear_attention(q, k, v, segment_ids=ids)[0],
    "softmax": lambda q, k, v, ids: softmax_attention(q, k, v, causal=False, segment_ids=ids),
    "diagonal": lambda q, k, v, ids: diagonal_attention(
        q, k, v, block_size=64, weights="softmax", causal=True, segment_ids=ids
    ),
    "lsh": lambda q, k, v, ids: lsh_attention(q, v, jnp.ones((2, 4, 1, 1)), chunk_size=4, causal=True, segment_ids=ids),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTENTIONS)
def test_an_id_that_comes_again_is_another_document(name: str):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 32, 2, 4))
    again, other = (jnp.repeat(jnp.array([[1, 2, last, 0]]), 8, axis=1) for last in (1, 3))
    np.testing.assert_array_equal(ATTENTIONS[name](q, k, v, again), ATTENTIONS[name](q, k, v, other))


def test_documents_are_counted_from_0_and_padding_takes_no_step():
    position, index = find_segments(jnp.array([[0, 5, 5, 0, 5, 7, 0, 5], [3, 3, 0, 0, 4, 4, 4, 0]]))
    np.testing.assert_array_equal(position, [[0, 1, 2, 2, 3, 4, 4, 5], [1, 2, 2, 2, 3, 4, 5, 5]])
    np.testing.assert_array_equal(index, [[0, 0, 0, 0, 0, 1, 1, 2], [0, 0, 0, 0, 1, 1, 1, 1]])


def test_a_document_may_come_from_an_earlier_shard():
    position, index = find_segments(jnp.array([[0, 5, 6], [6, 6, 5]]), jnp.array([5, 5]))
    np.testing.assert_array_equal(position, [[0, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(index, [[0, 0, 1], [1, 1, 2]])
