"""The Linear Transformer's attention, layer and recurrence against outputs of the reference implementation."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.shared import shared_file
from transnormer_jax.layers import FeedForward, TokenPositions
from transnormer_jax.ops import activation, linear_attention, normalized_linear_attention
from transnormer_jax.papers.mixers import LinearTransformerAttention

# Relative to the root mean square of each array; the operator is float32, and so is the reference where it is causal.
TOLERANCE = 2e-5

# Compiled without LLVM's optimisations, which take half of the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
phi = activation("1+elu")


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_file(f"golden/{name}.npz")) as arrays:
        return {key: arrays[key] for key in arrays}


def value_and_gradients(function, operands, cotangent):
    def run(*operands):
        out, pull_back = jax.vjp(function, *operands)
        return out, pull_back(cotangent)

    return jit(run)(*operands)


def assert_golden(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * np.sqrt(np.mean(np.square(expected))))


@pytest.mark.slow
@pytest.mark.parametrize("file", ["lt_causal", "lt_causal_lengths", "lt_noncausal_lengths"])
def test_attention_and_gradients(file):
    golden, causal = load(file), "noncausal" not in file
    num_queries, num_keys = golden["in/q"].shape[1], golden["in/k"].shape[1]
    more = ((0, 0), (0, num_keys - num_queries), (0, 0), (0, 0))
    ids = jnp.asarray(np.arange(num_keys)[None] < golden["in/key_lengths"][:, None], jnp.int32)

    # The reference answers queries at padding, too, so keys are hidden here in their features.
    def attention(q, k, v):
        q, k = jnp.pad(phi(q), more), jnp.where(ids[..., None, None] != 0, phi(k), 0)
        return normalized_linear_attention(q, k, v, causal=causal)[0][:, :num_queries]

    q, k, v = (jnp.asarray(golden[f"in/{name}"]) for name in "qkv")
    out, gradients = value_and_gradients(attention, (q, k, v), jnp.asarray(golden["in/cotangent"]))
    assert_golden(out, golden["out/y"])
    for name, gradient in zip("qkv", gradients, strict=True):
        assert_golden(gradient, golden[f"grad/{name}"])

    out = jit(lambda q, k, v: normalized_linear_attention(q, k, v, causal=causal, segment_ids=ids)[0])(
        jnp.pad(phi(q), more), phi(k), v
    )
    real = np.asarray(ids[:, :num_queries]) != 0
    assert_golden(out[:, :num_queries][real], golden["out/y"][real])


def test_product_without_denominator():
    golden = load("lt_causal_product_raw")
    q, k, v, cotangent, expected = (
        jnp.swapaxes(golden[name], 1, 2) for name in ("in/q", "in/k", "in/v", "in/cotangent", "out/y")
    )
    out, gradients = value_and_gradients(lambda q, k, v: linear_attention(q, k, v)[0], (q, k, v), cotangent)
    assert_golden(out, expected)
    for name, gradient in zip("qkv", gradients, strict=True):
        assert_golden(gradient, np.swapaxes(golden[f"grad/{name}"], 1, 2))


def test_recurrence():
    golden = load("lt_recurrent")
    q, k, v = (jnp.asarray(golden[f"in/{name}"]) for name in "qkv")
    state = jnp.zeros((2, 2, 8, 7))
    advance = jit(lambda q, k, v, state: normalized_linear_attention(phi(q), phi(k), v, initial_state=state))
    for step in range(15):
        now = slice(step, step + 1)
        out, state = advance(q[:, now], k[:, now], v[:, now], state)
        assert_golden(out[:, 0], golden["out/y"][:, step])
        when = {0: "first", 7: "mid", 14: "last"}.get(step)
        if when:
            assert_golden(state[..., :-1], golden[f"out/state_S_{when}"])
            assert_golden(state[..., -1], golden[f"out/state_Z_{when}"])


class Encoder(nn.Module):
    """Two layers with norms after the sums, as the reference builds them."""

    @nn.compact
    def __call__(self, x, positions, states):
        after = []
        for layer, state in enumerate(states):
            attention = LinearTransformerAttention(num_heads=4, causal=True, name=f"attention_{layer}")
            mixed, state = attention(x, positions, state)
            after.append(state)
            x = nn.LayerNorm(epsilon=1e-5, name=f"norm1_{layer}")(x + mixed)
            x = nn.LayerNorm(epsilon=1e-5, name=f"norm2_{layer}")(
                x + FeedForward(48, "relu", gated=False, name=f"feed_{layer}")(x)
            )
        return nn.LayerNorm(epsilon=1e-5, name="norm")(x), after


@pytest.mark.slow
def test_encoder_in_parallel_and_step_by_step():
    golden = load("lt_encoder_causal")

    def linear(name):
        return {"kernel": golden[f"param/{name}.weight"].T, "bias": golden[f"param/{name}.bias"]}

    def norm(name):
        return {"scale": golden[f"param/{name}.weight"], "bias": golden[f"param/{name}.bias"]}

    params = {"norm": norm("norm")}
    names = {"q": "query_projection", "k": "key_projection", "v": "value_projection", "out": "out_projection"}
    for layer in (0, 1):
        theirs = f"layers.{layer}"
        params |= {
            f"attention_{layer}": {name: linear(f"{theirs}.attention.{long}") for name, long in names.items()},
            f"feed_{layer}": {"in": linear(f"{theirs}.linear1"), "out": linear(f"{theirs}.linear2")},
            f"norm1_{layer}": norm(f"{theirs}.norm1"),
            f"norm2_{layer}": norm(f"{theirs}.norm2"),
        }
    x = jnp.asarray(golden["in/x"])
    apply = jit(Encoder().apply)
    out, _ = apply({"params": params}, x, TokenPositions(jnp.arange(20)[None]), [None, None])
    assert_golden(out, golden["out/y"])

    attention = LinearTransformerAttention(num_heads=4, causal=True)
    states = [attention.init_state(2, 20, 32)] * 2
    for step in range(20):
        out, states = apply({"params": params}, x[:, step : step + 1], TokenPositions(jnp.full((1, 1), step)), states)
        assert_golden(out[:, 0], golden["out/y_recurrent"][:, step])
