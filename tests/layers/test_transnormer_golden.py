"""NormAttention, DiagAttention, the GLU, LRPE and SimpleRMSNorm against outputs of the authors' code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.shared import shared_file
from transnormer_jax.layers import DiagAttention, FeedForward, NormAttention, TokenPositions
from transnormer_jax.ops import householder, rotary, rotary_frequencies, transnormer_rms_norm

# Relative to the root mean square of each array.
TOLERANCE = {"float32": 2e-5, "float64": 1e-9}

# Compiled without LLVM's optimisations, which take half of the time of these tests.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Where all is computed at the dtype asked for: formulas that agree so far agree in float32, which whole models have.
FLOAT64 = "float64"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(shared_file(f"golden/{name}.npz")) as arrays:
        return {key: arrays[key] for key in arrays}


def assert_golden(actual, expected, dtype):
    assert actual.dtype == dtype
    scale = np.sqrt(np.mean(np.square(expected)))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * scale)


def linear(golden, name, dtype):
    return {
        "kernel": jnp.asarray(golden[f"param/{name}.weight"].T, dtype),  # torch stores (out, in)
        "bias": jnp.asarray(golden[f"param/{name}.bias"], dtype),
    }


def check_attention(module, golden, dtype):
    params = {name: linear(golden, f"{name}_proj", dtype) for name in ("q", "k", "v", "out")}
    theta = jnp.asarray(golden["param/urpe.theta"][0, 0], dtype)
    params["theta_offset"] = theta - rotary_frequencies(2 * len(theta))
    params["householder"] = jnp.asarray(golden["param/urpe.v"], dtype)
    x = jnp.asarray(golden["in/x"], dtype)
    positions = TokenPositions(jnp.arange(x.shape[1], dtype=jnp.int32)[None])

    @jit
    def run(params, x, cotangent):
        out, pull_back = jax.vjp(lambda params, x: module.apply({"params": params}, x, positions)[0], params, x)
        return out, *pull_back(cotangent)

    out, d_params, d_x = run(params, x, jnp.asarray(golden["in/cotangent"], dtype))
    assert_golden(out, golden["out/y"], dtype)
    assert_golden(d_x, golden["grad/x"], dtype)
    assert_golden(d_params["theta_offset"], golden["grad/urpe.theta"][0, 0], dtype)
    assert_golden(d_params["q"]["kernel"], golden["grad/q_proj.weight"].T, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "variant", "causal"), [("t1_causal", "t1", True), ("t2_bidir", "t2", False)])
def test_norm_attention(file, variant, causal):
    # linear_attention is float32 inside, so there is no float64 to compare.
    module = NormAttention(num_heads=4, causal=causal, variant=variant)
    check_attention(module, load(f"tn_norm_attention_{file}"), "float32")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "variant", "causal", "heads"),
    [("t1_causal", "t1", True, 4), ("t2_bidir", "t2", False, 4), ("t2_causal", "t2", True, 2)],
)
def test_diag_attention(file, variant, causal, heads):
    golden = load(f"tn_diag_attention_{file}")
    with jax.enable_x64(True):
        types = {"dtype": jnp.dtype(FLOAT64), "param_dtype": jnp.dtype(FLOAT64)}
        module = DiagAttention(
            num_heads=heads, causal=causal, variant=variant, block_size=16, count_padding=not causal, **types
        )
        check_attention(module, golden, FLOAT64)


def test_gated_feed_forward():
    golden = load("tn_glu_silu")
    with jax.enable_x64(True):
        module = FeedForward(64, "silu", dtype=jnp.dtype(FLOAT64), param_dtype=jnp.dtype(FLOAT64))
        params = {
            name: linear(golden, theirs, FLOAT64) for name, theirs in (("gate", "l1"), ("value", "l2"), ("out", "l3"))
        }
        x, cotangent = (jnp.asarray(golden[name], FLOAT64) for name in ("in/x", "in/cotangent"))
        out, pull_back = jax.vjp(lambda x: module.apply({"params": params}, x), x)
        assert_golden(out, golden["out/y"], FLOAT64)
        assert_golden(pull_back(cotangent)[0], golden["grad/x"], FLOAT64)


@pytest.mark.slow
def test_lrpe():
    golden = load("tn_lrpe_1d3_even")
    np.testing.assert_allclose(rotary_frequencies(8), golden["aux/theta_at_init"][0, 0], rtol=1e-6)
    with jax.enable_x64(True):
        x, cotangent, theta = (jnp.asarray(golden[name], FLOAT64) for name in ("in/x", "in/cotangent", "param/theta"))
        mirror = jnp.asarray(golden["param/v"], FLOAT64)
        position = jnp.arange(x.shape[1])[None]

        def encode(x, theta):
            return rotary(householder(x, mirror)[:, :, None], theta, position)[:, :, 0]

        out, pull_back = jax.vjp(encode, x, theta[0, 0])
        d_x, d_theta = pull_back(cotangent)
        assert_golden(out, golden["out/y"], FLOAT64)
        assert_golden(d_x, golden["grad/x"], FLOAT64)
        assert_golden(d_theta, golden["grad/theta"][0, 0], FLOAT64)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_simple_rms_norm(dtype):
    golden = load("tn_simple_rmsnorm")
    with jax.enable_x64(dtype == "float64"):
        x, cotangent = (jnp.asarray(golden[name], dtype) for name in ("in/x", "in/cotangent"))
        out, pull_back = jax.vjp(transnormer_rms_norm, x)
        (d_x,) = pull_back(cotangent)
        for row in range(6):  # scales from 1e-6 to 1e3, and zero
            assert_golden(out[row], golden["out/y"][row], dtype)
            assert_golden(d_x[row], golden["grad/x"][row], dtype)
