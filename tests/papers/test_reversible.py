"""Reversible blocks: the gradient of the plain composition, at a memory that does not grow with depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from transnormer_jax.layers.token_positions import TokenPositions
from transnormer_jax.papers.mixers.lsh import LSHAttention
from transnormer_jax.papers.reversible import ReversibleBlocks

POSITIONS = TokenPositions(jnp.zeros((1, 1), jnp.int32))


class AttentionBranch(nn.Module):
    @nn.compact
    def __call__(self, x, positions):
        attention = LSHAttention(num_heads=2, causal=True, chunk_size=8, num_rounds=2)
        return attention(nn.LayerNorm()(x), positions)[0]


class FeedForwardBranch(nn.Module):
    hidden: int = 24

    @nn.compact
    def __call__(self, x, positions):
        return nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x))))


def blocks(depth):
    return tuple((AttentionBranch(parent=None), FeedForwardBranch(parent=None)) for _ in range(depth))


def example(depth, shape=(2, 24, 8)):
    """Module, parameters, inputs and positions of the tokens, of packed rows with padding."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    length = shape[1]
    ids = jnp.asarray(np.repeat([[1, 2, 0]], [length // 2, length // 3, length - length // 2 - length // 3], axis=1))
    positions = TokenPositions(jnp.arange(length)[None], jnp.broadcast_to(ids, shape[:2]))
    module = ReversibleBlocks(blocks(depth))
    shapes = jax.eval_shape(module.init, jax.random.key(0), x, positions)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape, scale=0.3), jnp.float32), shapes)
    return module, params, x, positions


def plain(blocks, params, x, positions):
    """The equations with autodiff's own gradient."""
    first, second = x, x
    for i, (attention, feed_forward) in enumerate(blocks):
        first = first + attention.apply({"params": params[f"attention_{i}"]}, second, positions)
        second = second + feed_forward.apply({"params": params[f"feed_forward_{i}"]}, first, positions)
    return (first + second) / 2


def assert_near(actual, expected, tolerance):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.sqrt(np.mean(np.square(expected))))


@pytest.mark.slow
def test_gradient_is_that_of_the_plain_composition():
    depth = 2
    module, params, x, positions = example(depth)
    weight = jnp.asarray(np.random.default_rng(1).normal(size=x.shape), jnp.float32)

    def loss(apply):
        return jax.jit(jax.value_and_grad(lambda params, x: jnp.sum(weight * apply(params, x)), argnums=(0, 1)))

    value, gradients = loss(lambda params, x: module.apply({"params": params}, x, positions))(params, x)
    expected, expected_gradients = loss(lambda params, x: plain(blocks(depth), params, x, positions))(params, x)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    jax.tree.map(lambda actual, like: assert_near(actual, like, 2e-5), gradients, expected_gradients)
    assert np.abs(gradients[0]["attention_0"]["LSHAttention_0"]["qk"]["kernel"]).max() > 0


class Noise(nn.Module):
    """Multiplies by what a random stream draws: linear, and another map for each draw."""

    stream: str

    def __call__(self, x, positions):
        return x * jax.random.normal(self.make_rng(self.stream), x.shape)


@pytest.mark.slow
def test_random_streams_repeat_in_the_backward_pass():
    """The gradient of a linear map is the map itself, if the backward pass draws what the forward pass drew."""
    module = ReversibleBlocks(((Noise("hash", parent=None), Noise("dropout", parent=None)),) * 2)
    rng = np.random.default_rng(2)
    x, direction, weight = (jnp.asarray(rng.normal(size=(2, 5, 3)), jnp.float32) for _ in range(3))

    @jax.jit
    def loss(x, dropout, hash_):
        rngs = {"dropout": jax.random.key(dropout), "hash": jax.random.key(hash_)}
        return jnp.sum(weight * module.apply({"params": params}, x, POSITIONS, rngs=rngs))

    params = {f"{name}_{i}": {} for name in ("attention", "feed_forward") for i in range(2)}
    slope = jnp.sum(jax.jit(jax.grad(loss))(x, 1, 2) * direction)
    np.testing.assert_allclose(slope, loss(direction, 1, 2), rtol=2e-5)
    assert abs(slope - loss(direction, 3, 2)) > 1e-2
    assert abs(slope - loss(direction, 1, 3)) > 1e-2


@pytest.mark.slow
def test_memory_does_not_grow_with_depth_as_the_plain_form():
    """The plain form keeps what is inside each sublayer; the reversible one at most its output, if XLA so chooses."""
    length, width, hidden = 256, 8, 128

    def temporary_bytes(depth, reversible):
        branch = FeedForwardBranch(hidden=hidden, parent=None)
        module = ReversibleBlocks(((branch, branch),) * depth)
        x = jax.ShapeDtypeStruct((1, length, width), jnp.float32)
        params = jax.eval_shape(module.init, jax.random.key(0), x, POSITIONS)["params"]

        def loss(params, x):
            if reversible:
                return jnp.sum(module.apply({"params": params}, x, POSITIONS) ** 2)
            return jnp.sum(plain(module.blocks, params, x, POSITIONS) ** 2)

        compiled = jax.jit(jax.grad(loss)).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    growth = {form: temporary_bytes(8, form) - temporary_bytes(2, form) for form in (True, False)}
    sublayers = 2 * (8 - 2)
    assert growth[False] > sublayers * length * hidden * 4
    assert growth[True] < sublayers * length * (width + 1) * 4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_output_has_the_dtype_of_the_input(dtype):
    module, params, x, positions = example(1)
    assert set(params) == {"attention_0", "feed_forward_0"}
    out = jax.eval_shape(lambda x: module.apply({"params": params}, x, positions), x.astype(dtype))
    assert out.dtype == dtype
