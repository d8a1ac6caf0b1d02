"""gated_linear_attention equals its definition in float64, in value and gradient, however strong the gates are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import packed_ids, relative_rms
from transnormer_jax.distributed import MeshConfig, make_mesh
from transnormer_jax.errors import UserError
from transnormer_jax.ops import gated_linear_attention, linear_attention
from transnormer_jax.ops.hardware import Hardware
from transnormer_jax.ops.linear_attention import gated

BATCH, LENGTH, HEADS, KEY, VALUE, DOCUMENTS = 2, 300, 2, 12, 20, 5
SCALE = 0.5
NAMES = ("q", "k", "v", "log_decay", "initial_state")


def make_gates(name: str, rng: np.random.Generator) -> np.ndarray:
    """Log-uniform gates, some of them replaced by -1e4, -1e30 or -inf."""
    shape = (BATCH, LENGTH, HEADS, KEY)
    log_decay = -np.exp(rng.uniform(np.log(1e-5), np.log(20.0 if name == "wide" else 1.0), shape))
    value, share = {"-1e4": (-1e4, 0.05), "-1e30": (-1e30, 0.5), "-inf": (-np.inf, 0.05), "all": (-1e4, 1.0)}.get(
        name, (0, 0)
    )
    return np.where(rng.random(shape) < share, value, log_decay).astype(np.float32)


def make_inputs(gates: str = "mild", *, documents: int | None = None, dtype=jnp.float32):
    """Operands q, k, v, log_decay, state; their cotangents; segment ids."""
    rng = np.random.default_rng(0)

    def normal(*shape, dtype=dtype):
        return np.asarray(jnp.asarray(rng.standard_normal(shape), dtype))

    states = (BATCH, *(() if documents is None else (documents,)), HEADS, KEY, VALUE)
    tokens = (BATCH, LENGTH, HEADS)
    operands = (normal(*tokens, KEY), normal(*tokens, KEY), normal(*tokens, VALUE), make_gates(gates, rng))
    cotangents = (normal(*tokens, VALUE), normal(*states, dtype=jnp.float32))
    return (*operands, normal(*states, dtype=jnp.float32)), cotangents, packed_ids(rng, BATCH, LENGTH)


@functools.partial(jax.jit, static_argnames="by_document")
def _define(operands, cotangents, ids, by_document):
    rows = jnp.arange(BATCH)

    def outputs(q, k, v, log_decay, state):
        if not by_document:  # the documents after the first start from zero
            state = jnp.pad(state[:, None], ((0, 0), (0, LENGTH - 1), (0, 0), (0, 0), (0, 0)))

        def step(carry, token):
            states, document, last_id = carry
            q_t, k_t, v_t, g_t, id_t = token
            real = id_t != 0
            document += real & (last_id != 0) & (id_t != last_id)
            before = states[rows, document]
            after = jnp.exp(g_t)[..., None] * before + k_t[..., :, None] * v_t[..., None, :]
            states = states.at[rows, document].set(jnp.where(real[:, None, None, None], after, before))
            out = SCALE * jnp.sum(q_t[..., :, None] * states[rows, document], axis=-2)
            return (states, document, jnp.where(real, id_t, last_id)), jnp.where(real[:, None, None], out, 0)

        zeros = jnp.zeros(BATCH, jnp.int32)
        tokens = tuple(jnp.moveaxis(x, 1, 0) for x in (q, k, v, log_decay, ids))
        (states, document, _), out = jax.lax.scan(step, (state, zeros, zeros), tokens)
        return jnp.moveaxis(out, 0, 1), states if by_document else states[rows, document]

    results, pull_back = jax.vjp(outputs, *operands)
    return *results, *pull_back(cotangents)


def define(operands, cotangents, ids):
    """Output, states, and gradients of all operands, by a loop over tokens in float64."""
    operands = [np.asarray(x, np.float64) for x in operands]
    with jax.enable_x64(True):
        cotangents = tuple(np.asarray(x, np.float64) for x in cotangents)
        return jax.device_get(_define(operands, cotangents, ids, operands[4].ndim == 5))


@functools.partial(jax.jit, static_argnames="chunk_size")
def apply(operands, cotangents, ids, chunk_size=None):
    """The same by the operator."""
    documents = operands[4].shape[1] if operands[4].ndim == 5 else None

    def outputs(q, k, v, log_decay, state):
        options = {"segment_ids": ids, "max_segments": documents, "scale": SCALE, "chunk_size": chunk_size}
        return gated_linear_attention(q, k, v, log_decay, initial_state=state, **options)

    results, pull_back = jax.vjp(outputs, *operands)
    return *results, *pull_back(cotangents)


def check(actual, expected, value=2e-6, gradient=5e-6, decay=2e-5):
    limits = [value, value, gradient, gradient, gradient, decay, gradient]
    for name, x, y, limit in zip(("out", "state", *NAMES), actual, expected, limits, strict=False):
        assert np.isfinite(np.asarray(x, np.float32)).all(), name
        assert relative_rms(x, y) <= limit, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gates", "documents"),
    [("mild", None), ("wide", DOCUMENTS), ("-1e4", None), ("-1e30", DOCUMENTS), ("-inf", None), ("-inf", DOCUMENTS)],
)
def test_it_equals_the_definition(gates, documents):
    inputs = make_inputs(gates, documents=documents)
    check(apply(*inputs), define(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize(("gates", "documents"), [("wide", None), ("-inf", DOCUMENTS)])
def test_the_form_for_gpus_and_tpus(gates, documents, monkeypatch):
    monkeypatch.setattr(gated, "target_hardware", lambda: Hardware("tpu", "TPU v5e"))
    inputs = make_inputs(gates, documents=documents)
    check(jax.jit(apply.__wrapped__)(*inputs), define(*inputs))


@pytest.mark.slow
def test_gates_that_forget_everything():
    operands, cotangents, _ = make_inputs("all")
    ids = np.ones((BATCH, LENGTH), np.int32)
    actual, expected = apply(operands, cotangents, ids), define(operands, cotangents, ids)
    check(actual[:5], expected[:5])
    assert not any(np.asarray(x).any() for x in actual[5:])  # the true values are below the smallest float32


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [1, 512])
def test_chunk_sizes(chunk_size):
    inputs = make_inputs(documents=DOCUMENTS)
    check(apply(*inputs, chunk_size=chunk_size), define(*inputs))


@pytest.mark.slow
def test_bfloat16():
    inputs = make_inputs(documents=DOCUMENTS, dtype=jnp.bfloat16)
    actual = apply(*inputs)
    assert (actual[0].dtype, actual[1].dtype) == (jnp.bfloat16, jnp.float32)
    check(actual, define(*inputs), 5e-3, 5e-3, 5e-3)


@pytest.mark.slow
def test_equal_channels_are_a_decay_per_head():
    (q, k, v, log_decay, state), _, ids = jax.tree.map(jnp.asarray, make_inputs())
    log_decay = log_decay[..., 0]
    same = jnp.broadcast_to(log_decay[..., None], q.shape)
    options = {"initial_state": state, "segment_ids": ids}
    gated_results = jax.jit(gated_linear_attention)(q, k, v, same, **options)
    for x, y in zip(gated_results, jax.jit(linear_attention)(q, k, v, log_decay, **options), strict=True):
        assert relative_rms(x, np.asarray(y, np.float64)) <= 2e-6


@pytest.mark.slow
def test_rows_may_be_cut_and_decoded_token_by_token():
    (q, k, v, log_decay, state), _, _ = jax.tree.map(jnp.asarray, make_inputs("-inf"))
    whole, final = gated_linear_attention(q, k, v, log_decay, initial_state=state)
    outs, step = [], jax.jit(lambda *x, state: gated_linear_attention(*x, initial_state=state))
    for cut in (slice(0, 290), *(slice(t, t + 1) for t in range(290, LENGTH))):
        out, state = step(*(x[:, cut] for x in (q, k, v, log_decay)), state=state)
        outs.append(out)
    assert relative_rms(jnp.concatenate(outs, axis=1), np.asarray(whole, np.float64)) <= 2e-6
    assert relative_rms(state, np.asarray(final, np.float64)) <= 2e-6


@pytest.mark.slow
def test_second_derivatives():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 1, 9, 1, 2)), jnp.float32)

    def loss(x):
        out, state = gated_linear_attention(x[0], x[1], x[2], -jnp.exp(x[3]), chunk_size=4)
        return jnp.sum(jnp.sin(out)) + jnp.sum(state**2)

    def definition(x):
        q, k, v, g = x[:4, 0, :, 0, :]
        state, total = jnp.zeros((2, 2)), 0.0
        for t in range(9):
            state = jnp.exp(-jnp.exp(g[t]))[:, None] * state + k[t][:, None] * v[t][None]
            total += jnp.sum(jnp.sin(q[t] @ state))
        return total + jnp.sum(state**2)

    direction = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)

    def second(f):  # a Hessian times a vector, and the same in the other mode
        def slope(x):
            return jnp.vdot(jax.grad(f)(x), direction)

        return jax.grad(slope)(x), jax.jvp(jax.grad(f), (x,), (direction,))[1]

    actual = jax.jit(lambda: second(loss))()
    with jax.enable_x64(True):
        x, direction = np.asarray(x, np.float64), np.asarray(direction, np.float64)
        expected = jax.device_get(jax.jit(lambda: second(definition))())
    for one, other in zip(actual, expected, strict=True):
        assert relative_rms(one, other) <= 2e-5


def test_no_rows_are_a_batch():
    q = jnp.zeros((0, 8, 2, 4))
    assert gated_linear_attention(q, q, q, q)[0].shape == q.shape


@pytest.mark.slow
def test_vmap():
    operands, _, _ = jax.tree.map(jnp.asarray, make_inputs())
    several = [jnp.stack([x, -x if i < 3 else x]) for i, x in enumerate(operands[:4])]
    attend = jax.jit(gated_linear_attention)
    actual = jax.vmap(attend)(*several)
    for i in range(2):
        expected = attend(*(x[i] for x in several))
        for x, y in zip(actual, expected, strict=True):
            np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 1, "context": 4, "tensor": 2}, {"data": 2, "fsdp": 1, "tensor": 2}])
def test_rows_heads_and_tokens_on_several_devices(mesh):
    inputs = make_inputs("-1e4")
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    with jax.set_mesh(make_mesh(MeshConfig(**mesh), devices=devices)):
        actual = jax.jit(apply)(*inputs)
    assert actual[0].sharding.spec[1] == ("context" if "context" in mesh else None)
    check(actual, define(*inputs))


@pytest.mark.slow
def test_one_state_per_block_is_kept_however_many_documents():
    """The states of the documents are not among what the scan keeps for the backward pass."""

    def bytes_needed(documents):
        shape = jax.ShapeDtypeStruct((1, 4096, 1, 64), jnp.float32)
        state = jax.ShapeDtypeStruct((1, documents, 1, 64, 64), jnp.float32)

        def loss(q, state):
            options = {"segment_ids": jnp.ones((1, 4096), jnp.int32), "max_segments": documents, "chunk_size": 16}
            return sum(jnp.sum(x) for x in gated_linear_attention(q, q, q, -(q**2), initial_state=state, **options))

        return jax.jit(jax.grad(loss)).lower(shape, state).compile().memory_analysis().temp_size_in_bytes

    # 62 more states and 62 more chunks of 16 tokens, about twice; 20 times if each of 20 blocks kept all states.
    assert bytes_needed(64) - bytes_needed(2) < 62 * 4 * (64 * 64 + 16 * 64) * 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_decay": jnp.zeros((1, 4, 2))}, r"log_decay has shape \(1, 4, 2\).* it must be \(1, 4, 2, 3\)"),
        ({"k": jnp.zeros((1, 4, 2, 3), jnp.bfloat16)}, "give one dtype among bfloat16, float16 and float32"),
        ({"chunk_size": 48}, "chunk_size is 48: .* give a power of 2"),
        ({"max_segments": 0}, "max_segments is 0"),
        ({"max_segments": 2, "initial_state": jnp.zeros((1, 2, 3, 3))}, r"it must be \(1, 2, 2, 3, 3\)"),
    ],
)
def test_mistakes(changes, message):
    arguments = dict.fromkeys(("q", "k", "v", "log_decay"), jnp.zeros((1, 4, 2, 3))) | changes
    # The annotations refuse some shapes here (conftest); users get the sentence.
    with pytest.raises(UserError, match=message):
        getattr(gated_linear_attention, "__wrapped__", gated_linear_attention)(**arguments)
