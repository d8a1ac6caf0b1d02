"""`ops.fla` against the outputs of flash-linear-attention, and its conventions for packed documents."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import relative_rms
from tests.ops.test_golden import load
from transnormer_jax.errors import UserError
from transnormer_jax.ops import fla, released_log_decay

SIMPLE = ("fla_simple_gla_token_gates", "fla_simple_gla_chunked_tail")
STARTS = np.array([0, 5, 5, 12, 20, 20])  # two of five documents are empty


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SIMPLE, "fla_lightning_paper_decay"])
def test_scalar_decay_and_its_gradients(name):
    golden = load(name)
    names = ("q", "k", "v", "log_decay", "initial_state")
    scale = 1.0 if name == "fla_lightning_paper_decay" else None

    @jax.jit
    def outputs(q, k, v, g, state):
        return fla.chunk_simple_gla(q, k, v, g, scale=scale, initial_state=state, output_final_state=True)

    (out, state), pull_back = jax.vjp(outputs, *(jnp.asarray(golden[f"in/{name}"]) for name in names))
    assert relative_rms(out, golden["out/y"]) <= 2e-6
    assert relative_rms(state, golden["out/final_state"]) <= 2e-6
    gradients = pull_back((jnp.asarray(golden["in/cotangent_y"]), jnp.asarray(golden["in/cotangent_state"])))
    for name, gradient in zip(names, gradients, strict=True):
        assert relative_rms(gradient, golden[f"grad/{name}"]) <= (2e-5 if name == "log_decay" else 5e-6), name


def operands(golden):
    return [jnp.asarray(golden[f"in/{name}"]) for name in "qkv"]


def test_a_decay_per_channel():
    golden = load("fla_gla_vector_gates")
    state, g = jnp.asarray(golden["in/initial_state"]), jnp.asarray(golden["in/log_decay"])
    out, state = fla.chunk_gla(*operands(golden), g, initial_state=state, output_final_state=True)
    assert relative_rms(out, golden["out/y"]) <= 2e-6
    assert relative_rms(state, golden["out/final_state"]) <= 2e-6


@pytest.mark.slow
def test_lightning_attention():
    golden = load("fla_lightning_paper_decay")
    options = {"scale": 1.0, "initial_state": jnp.asarray(golden["in/initial_state"]), "output_final_state": True}
    out, state = fla.chunk_lightning_attn(*operands(golden), 1, 6, **options)
    assert relative_rms(out, golden["out/y"]) <= 2e-6
    assert relative_rms(state, golden["out/final_state"]) <= 2e-6
    # What the documentation warns of: the released checkpoints decay otherwise.
    released, _ = fla.chunk_simple_gla(*operands(golden), g_gamma=released_log_decay(4, 6)[1], **options)
    assert relative_rms(released, golden["out/y"]) > 0.1


@pytest.mark.slow
def test_retention():
    golden = load("fla_retention")
    out, state = fla.chunk_retention(*(jnp.swapaxes(x, 1, 2) for x in operands(golden)))  # stored heads first
    assert relative_rms(jnp.swapaxes(out, 1, 2), golden["out/y"]) <= 2e-6
    assert state is None


@pytest.mark.slow
def test_no_decay():
    golden = load("fla_linear_attn_state")
    options = {"scale": 1.0, "initial_state": jnp.asarray(golden["in/initial_state"]), "output_final_state": True}
    out, state = fla.chunk_linear_attn(*operands(golden), normalize=False, **options)
    assert relative_rms(out, golden["out/y"]) <= 2e-6
    assert relative_rms(state, golden["out/final_state"]) <= 2e-6


def make_documents():
    """One row of documents, and a state for each."""
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.random((3, 1, STARTS[-1], 2, 8)), jnp.float32)
    g = jnp.asarray(-rng.random((1, STARTS[-1], 2, 8)), jnp.float32)
    return q, k, v, g, jnp.asarray(rng.random((len(STARTS) - 1, 2, 8, 8)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize("function", [fla.chunk_simple_gla, fla.chunk_gla])
def test_packed_documents_are_rows_of_their_own(function):
    q, k, v, g, states = make_documents()
    if function is not fla.chunk_gla:
        g = g[..., 0]

    @jax.jit
    def packed(states, starts):
        return function(q, k, v, g, initial_state=states, output_final_state=True, cu_seqlens=starts)

    out, final = packed(states, STARTS)
    assert final.shape == states.shape
    unpacked, none = function(q, k, v, g, cu_seqlens=STARTS)
    assert none is None
    for i, (start, end) in enumerate(itertools.pairwise(STARTS)):
        own = [x[:, start:end] for x in (q, k, v, g)]
        alone, state = function(*own, initial_state=states[i : i + 1], output_final_state=True)
        np.testing.assert_allclose(out[:, start:end], alone, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(final[i], state[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(unpacked[:, start:end], function(*own)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_normalized():
    q, k, v, _, states = make_documents()
    sums = states[:, None, ..., 0]
    options = {"initial_state": (states, sums), "output_final_state": True, "cu_seqlens": STARTS}
    out, (state, z) = fla.chunk_linear_attn(q, k, v, **options)
    start, end = STARTS[2:4]
    keys, values = (np.asarray(x, np.float64)[0, start:end] for x in (k, v))
    z_t = np.asarray(sums, np.float64)[2, 0] + np.cumsum(keys, axis=0)
    s_t = np.asarray(states, np.float64)[2] + np.cumsum(keys[..., None] * values[..., None, :], axis=0)
    queries = np.asarray(q, np.float64)[0, start:end]
    expected = np.einsum("nhk,nhkv->nhv", queries, s_t) / np.einsum("nhk,nhk->nh", queries, z_t)[..., None]
    np.testing.assert_allclose(out[0, start:end], expected, rtol=1e-5)
    np.testing.assert_allclose(z[2, 0], z_t[-1], rtol=1e-5)
    np.testing.assert_allclose(state[2], s_t[-1], rtol=1e-5)
    np.testing.assert_array_equal(z[1], sums[1])  # an empty document


def test_mistakes():
    q = jnp.zeros((2, 4, 2, 8))
    with pytest.raises(UserError, match="g and g_gamma are both given"):
        fla.chunk_simple_gla(q, q, q, q[..., 0], jnp.zeros(2))
    with pytest.raises(UserError, match="cu_seqlens with 2 rows: pack all documents into one row"):
        fla.chunk_simple_gla(q, q, q, cu_seqlens=np.array([0, 4]))
    with pytest.raises(TypeError, match="head_first"):
        fla.chunk_simple_gla(q, q, q, head_first=True)
