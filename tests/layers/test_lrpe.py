"""Weight decay, however strong and by whichever optimizer, leaves TransNormer's position encoding as it was made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from transnormer_jax.layers import NormAttention, TokenPositions


@pytest.mark.slow
def test_parameters_that_decay_to_nothing_change_nothing():
    module, positions = NormAttention(num_heads=2, causal=True), TokenPositions(jnp.arange(24)[None])
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 24, 16)), jnp.float32)
    params = jax.jit(module.init)(jax.random.key(0), x, positions)["params"]
    apply = jax.jit(lambda params: module.apply({"params": params}, x, positions)[0])
    expected = apply(params)
    encoding = {name: params[name] for name in ("theta_offset", "householder")}

    optimizer = optax.adamw(1.0, weight_decay=0.5)
    state, zero = optimizer.init(encoding), jax.tree.map(jnp.zeros_like, encoding)
    for _ in range(100):
        updates, state = optimizer.update(zero, state, encoding)
        encoding = optax.apply_updates(encoding, updates)
    assert 0 < np.abs(encoding["householder"]).max() < 1e-29
    np.testing.assert_allclose(apply(params | encoding), expected, atol=1e-5)
    other = params | {"theta_offset": params["theta_offset"] + 0.5}
    assert np.abs(apply(other) - expected).max() > 1e-3
