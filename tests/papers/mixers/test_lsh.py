"""The layer of LSH attention: its rotations, masks and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.errors import UserError
from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.papers.mixers.lsh import LSHAttention

PLACES = TokenPositions(jnp.zeros((1, 1), jnp.int32))


def example(length=29, **options):
    """A module, its parameters and inputs [2, N, 8]."""
    module = LSHAttention(**{"num_heads": 2, "causal": True, "chunk_size": 8, "num_rounds": 2} | options)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, length, 8)), jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, PLACES)["params"]
    assert set(shapes) == {"qk", "v", "out"}
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.5), jnp.float32), shapes)
    return module, params, x


@pytest.mark.slow
def test_hashes_repeat_without_a_key_and_change_with_it():
    module, params, x = example()

    @jax.jit
    def apply(seed):
        return module.apply({"params": params}, x, PLACES, rngs={"hash": jax.random.key(seed)})[0]

    still = jax.jit(lambda: module.apply({"params": params}, x, PLACES)[0])
    np.testing.assert_array_equal(still(), still())
    np.testing.assert_array_equal(apply(1), apply(1))
    assert np.abs(apply(1) - apply(2)).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_padding_never_leaks(causal):
    module, params, x = example(causal=causal)
    ids = jnp.asarray([[1] * 20 + [0] * 9, [0] * 3 + [1] * 11 + [2] * 15], jnp.int32)
    apply = jax.jit(lambda x: module.apply({"params": params}, x, PLACES._replace(segment_ids=ids)))
    (clean, state), (dirty, _) = apply(x), apply(jnp.where(ids[..., None] == 0, 1e9, x))
    assert state is None
    np.testing.assert_array_equal(clean[ids > 0], dirty[ids > 0])
    assert np.isfinite(dirty).all()


@pytest.mark.slow
def test_causal_by_gradient():
    """A token's features decide the hash as well, which has no gradient."""
    module, params, x = example()
    positions = TokenPositions(jnp.arange(29)[None])
    jacobian = jax.jit(jax.jacobian(lambda x: module.apply({"params": params}, x, positions)[0][0].sum(-1)))(x)
    influence = np.abs(jacobian[:, 0]).sum(-1)
    assert (np.triu(influence, 1) == 0).all()
    assert (np.tril(influence, -1) > 0).sum() > 29


@pytest.mark.slow
def test_many_buckets_and_half_precision():
    module, params, x = example(num_buckets=192, dtype=jnp.dtype("bfloat16"))
    out, _ = jax.jit(module.apply)({"params": params}, x, PLACES)
    assert out.dtype == jnp.bfloat16
    assert np.isfinite(out.astype(jnp.float32)).all()


def test_refusals():
    x = jnp.zeros((1, 8, 8))
    for options, state, message in (
        ({}, 0, "LSH attention has no state"),
        ({"num_rounds": 0}, None, "num_rounds 0: give both as 1 or more"),
        ({"num_buckets": 5}, None, "num_buckets is 5: give an even number"),
    ):
        module = LSHAttention(**{"num_heads": 2, "causal": True, "chunk_size": 8, "num_rounds": 2} | options)
        with pytest.raises(UserError, match=message):
            jax.eval_shape(lambda module=module, state=state: module.init(jax.random.key(0), x, PLACES, state))
