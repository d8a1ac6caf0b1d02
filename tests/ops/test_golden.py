"""linear_attention against outputs of the reference implementations."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.ops.definition import relative_rms
from tests.shared import shared_file
from transnormer_jax.ops import alibi_slopes, linear_attention, normalized_linear_attention, paper_log_decay


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_file(f"golden/{name}.npz")) as arrays:
        return {key: arrays[key] for key in arrays}


def test_paper_decay_with_states_and_gradients():
    golden = load("fla_lightning_paper_decay")
    log_decay = jnp.asarray(paper_log_decay(4, 6)[1])
    np.testing.assert_allclose(log_decay, golden["in/log_decay"][0, 0], rtol=1e-6)

    def outputs(q, k, v, log_decay, initial_state):
        return linear_attention(q, k, v, log_decay, initial_state=initial_state)

    names = ("q", "k", "v", "log_decay", "initial_state")
    operands = {name: jnp.asarray(golden[f"in/{name}"]) for name in names} | {"log_decay": log_decay}
    (out, state), pull_back = jax.vjp(outputs, *operands.values())
    assert relative_rms(out, golden["out/y"]) <= 2e-6
    assert relative_rms(state, golden["out/final_state"]) <= 2e-6
    gradients = pull_back((jnp.asarray(golden["in/cotangent_y"]), jnp.asarray(golden["in/cotangent_state"])))
    golden["grad/log_decay"] = golden["grad/log_decay"].sum((0, 1))  # stored per token
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_rms(gradient, golden[f"grad/{name}"]) <= 5e-6, name


def test_slopes_of_the_released_code():
    golden = load("la_torch_oracle_slopes")
    np.testing.assert_allclose(golden["in/slopes"].ravel(), alibi_slopes(4), rtol=1e-6)
    q, k, v, d_out, expected = (
        jnp.swapaxes(golden[name], 1, 2) for name in ("in/q", "in/k", "in/v", "in/cotangent", "out/y")
    )
    log_decay = jnp.asarray(-alibi_slopes(4), jnp.float32)
    out, pull_back = jax.vjp(lambda q, k, v: linear_attention(q, k, v, log_decay)[0], q, k, v)
    assert relative_rms(out, expected) <= 2e-6
    for name, gradient in zip("qkv", pull_back(d_out), strict=True):
        assert relative_rms(gradient, jnp.swapaxes(golden[f"grad/{name}"], 1, 2)) <= 5e-6, name


def test_linear_transformer():
    for file in ("lt_causal", "lt_causal_lengths"):
        golden = load(file)
        real = jnp.arange(golden["in/k"].shape[1])[None] < golden["in/key_lengths"][:, None]

        def attention(q, k, v, real=real):
            q, k = jax.nn.elu(q) + 1, (jax.nn.elu(k) + 1) * real[..., None, None]
            return normalized_linear_attention(q, k, v)[0]

        @jax.jit
        def both(q, k, v, cotangent, attention=attention):
            out, pull_back = jax.vjp(attention, q, k, v)
            return out, pull_back(cotangent)

        out, gradients = both(*(golden[f"in/{name}"] for name in "qkv"), golden["in/cotangent"])
        # The reference's kernel is itself float32.
        np.testing.assert_allclose(out, golden["out/y"], atol=1e-5)
        for name, gradient in zip("qkv", gradients, strict=True):
            np.testing.assert_allclose(gradient, golden[f"grad/{name}"], atol=1e-5)
