"""Every backend equals the definition, in value and gradient; and the properties that users rely on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.definition import (
    ALL,
    CASES,
    DOCUMENT_CASES,
    GROUPED_CASES,
    PER_TOKEN,
    TOKEN_CASES,
    Case,
    Inputs,
    define,
    define_gradients,
    make_inputs,
    parametrize,
    relative_rms,
)
from transnormer_jax.errors import UserError
from transnormer_jax.ops import (
    alibi_slopes,
    linear_attention,
    resolve_backend,
    token_positions,
)
from transnormer_jax.ops.hardware import interpret_kernels, interpret_mode
from transnormer_jax.ops.linear_attention import Problem

ANYWHERE = ["recurrent", "quadratic", "associative_scan", "chunked", "chunked_associative_scan"]
each_backend = pytest.mark.parametrize("backend", ANYWHERE)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@functools.cache
def compiled(backend: str, mode: object, **options):
    """One program for each backend, shape and mode in which kernels are interpreted."""
    del mode
    return jax.jit(functools.partial(linear_attention, backend=backend, **options))


def apply(inputs: Inputs, backend: str, **options):
    inputs = jax.tree.map(jnp.asarray, inputs)
    attend = compiled(backend, interpret_mode(), **options)
    return attend(*inputs[:4], initial_state=inputs.initial_state, segment_ids=inputs.segment_ids)


@functools.cache
def compiled_gradients(backend: str, mode: object, mesh: object):
    """One program for outputs and gradients together, with what depends on the case as operands."""
    del mode, mesh

    @jax.jit
    def outputs_and_gradients(q, k, v, log_decay, state, d_out, d_state, segment_ids):
        def attend(q, k, v, log_decay, state):
            slots = state.shape[1] if state.ndim == 5 else None
            options = {"initial_state": state, "segment_ids": segment_ids, "max_segments": slots, "backend": backend}
            return linear_attention(q, k, v, log_decay, **options)

        outputs, pull_back = jax.vjp(attend, q, k, v, log_decay, state)
        return outputs, pull_back((d_out, d_state))

    return outputs_and_gradients


def apply_with_gradients(inputs: Inputs, backend: str):
    """Output and final state, and the gradient of each operand by name; a decay or state that is left out is zero."""
    log_decay = np.zeros(inputs.v.shape[2], np.float32) if inputs.log_decay is None else inputs.log_decay
    state = np.zeros_like(inputs.d_state) if inputs.initial_state is None else inputs.initial_state
    operands = (*inputs[:3], log_decay, state, inputs.d_out, inputs.d_state, inputs.segment_ids)
    attend = compiled_gradients(backend, interpret_mode(), jax.sharding.get_abstract_mesh())
    outputs, grads = attend(*jax.tree.map(jnp.asarray, operands))
    return outputs, dict(zip(("q", "k", "v", "log_decay", "initial_state"), grads, strict=True))


def assert_equals_definition(inputs: Inputs, backend: str, bounds: dict[str, float]) -> None:
    """Relative RMS errors against float64: each name's bound, or that of "all"."""
    (out, state), grads = apply_with_gradients(inputs, backend)
    assert out.dtype == inputs.q.dtype
    assert state.dtype == jnp.float32
    actual = {"out": out, "state": state} | grads
    expected = dict(zip(("out", "state"), define(inputs), strict=True)) | define_gradients(inputs)
    errors = {name: relative_rms(actual[name], expected[name]) for name in expected}
    assert all(errors[name] <= bounds.get(name, bounds["all"]) for name in errors), errors


FLOAT32 = {"out": 2e-6, "state": 2e-6, "all": 5e-6, "log_decay": 2e-5}


@parametrize([*CASES, *TOKEN_CASES, DOCUMENT_CASES[0], *GROUPED_CASES], quick=[ALL, GROUPED_CASES[1]])
@each_backend
def test_float32_equals_definition(backend: str, case: Case):
    inputs = make_inputs(case)
    if case.name == "all_strong":  # exp(-1e4) is 0, and so is the gradient of the decay: only its absolute size counts
        outputs, grads = apply_with_gradients(inputs, backend)
        for actual, expected in zip(outputs, define(inputs), strict=True):
            assert relative_rms(actual, expected) <= 2e-6
        assert np.abs(grads["log_decay"]).max() <= 1e-4
        return
    assert_equals_definition(inputs, backend, FLOAT32)


@pytest.mark.parametrize(
    ("backend", "dtype"), [*((backend, jnp.bfloat16) for backend in ANYWHERE), ("chunked", jnp.float16)]
)
def test_half_precision_equals_definition(backend: str, dtype):
    assert_equals_definition(make_inputs(ALL, dtype), backend, {"all": 5e-3})


@pytest.mark.parametrize("case", [PER_TOKEN, GROUPED_CASES[1]], ids=lambda case: case.name)
def test_half_precision_per_token(case: Case):
    assert_equals_definition(make_inputs(case, jnp.bfloat16), "chunked", {"all": 5e-3})


@each_backend
def test_what_is_left_out_is_zero(backend: str):
    inputs = make_inputs(Case("left_out", (1, 20, 2, 4, 4), None))
    for actual, expected in zip(apply(inputs, backend), define(inputs), strict=True):
        assert relative_rms(actual, expected) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["recurrent", "associative_scan", "chunked", "chunked_associative_scan"])
def test_long_rows_stay_finite(backend: str):
    # The decay's own gradient is the one that cancels: here it is held against float64 as well.
    inputs = make_inputs(Case("long", (1, 65536, 4, 4, 4), [-0.7, -0.7, -1e-5, -1e-5]))
    outputs, grads = apply_with_gradients(inputs, backend)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((outputs, grads)))
    expected = define_gradients(inputs)["log_decay"]
    for heads in (slice(0, 2), slice(2, 4)):
        assert relative_rms(grads["log_decay"][heads], expected[heads]) <= 2e-5


@pytest.mark.slow
def test_causality_by_gradient():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 100, 1, 4))
    for backend in ANYWHERE:

        def output_at_60(k, v, backend=backend):
            return linear_attention(q, k, v, -0.1 * jnp.ones(1), backend=backend)[0][0, 60].sum()

        for gradient in jax.jit(jax.grad(output_at_60, argnums=(0, 1)))(k, v):
            touched = np.abs(gradient[0]).sum((1, 2)) > 0
            assert touched[:61].all()
            assert not touched[61:].any()


def test_cut_anywhere():
    inputs = make_inputs(CASES[-1]._replace(segments=False))
    whole, final = apply(inputs, "chunked")
    state, pieces = inputs.initial_state, []
    for piece in (slice(0, 1), slice(1, 130), slice(130, None)):
        part = Inputs(*(x[:, piece] for x in inputs[:3]), inputs.log_decay, state, None, None, None)
        out, state = apply(part, "auto")
        pieces.append(out)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state, final, rtol=1e-4, atol=1e-4)


def test_no_tokens_leave_the_state_as_it_is():
    q = k = v = jnp.zeros((1, 0, 2, 4))
    state = jax.random.normal(jax.random.key(0), (1, 2, 4, 4))
    out, after = linear_attention(q, k, v, initial_state=state)
    assert out.shape == (1, 0, 2, 4)
    np.testing.assert_array_equal(after, state)


@pytest.mark.slow
def test_gradient_of_gradient():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 20, 2, 3))
    log_decay = jnp.array([-0.3, -1e-3])

    def penalty(backend):
        def loss(q, k, v, log_decay):
            return jnp.sum(linear_attention(q, k, v, log_decay, backend=backend, chunk_size=8)[0] ** 2)

        def norm(*operands):
            return sum(jnp.sum(g**2) for g in jax.grad(loss, argnums=(0, 1, 2, 3))(*operands))

        return jax.jit(jax.grad(norm, argnums=(0, 1, 2, 3)))(q, k, v, log_decay)

    with jax.enable_x64(False):
        for a, b in zip(penalty("chunked"), penalty("recurrent"), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())
    # Against differences of the first gradient, in a random direction.
    direction = jax.random.normal(jax.random.key(1), q.shape)

    @jax.jit
    def gradient_along(q):
        return jax.grad(lambda q: jnp.sum(linear_attention(q, k, v, log_decay)[0] ** 3))(q)

    step = 1e-2
    difference = (gradient_along(q + step * direction) - gradient_along(q - step * direction)) / (2 * step)
    product = jax.jit(lambda q, along: jax.vjp(gradient_along, q)[1](along)[0])(q, direction)
    expected = jnp.vdot(direction, difference)  # the Hessian is symmetric
    np.testing.assert_allclose(jnp.vdot(product, direction), expected, rtol=2e-3)


@pytest.mark.parametrize("segments", [False, True])
def test_not_causal_sees_the_whole_document(segments: bool):
    inputs = make_inputs(CASES[-1]._replace(segments=segments, log_decay=None))
    out, state = apply(inputs, "auto", causal=False, scale=0.5)
    q, k, v = (x.astype(np.float64) for x in inputs[:3])
    ids = inputs.segment_ids if segments else np.ones(q.shape[:2], np.int32)
    same = (ids[:, :, None] == ids[:, None, :]) & (ids[:, :, None] != 0)
    scores = np.einsum("bnhk,bmhk->bhnm", q, k) * same[:, None]
    expected = np.einsum("bhnm,bmhv->bnhv", scores, v)
    first = ids == np.max(np.where(ids == 0, 0, ids == ids[:, 7:8]) * ids, axis=1, keepdims=True)
    expected += np.einsum("bnhk,bhkv->bnhv", q, inputs.initial_state) * first[..., None, None]
    assert relative_rms(out, 0.5 * expected) <= 2e-6
    if not segments:
        assert relative_rms(state, inputs.initial_state + np.einsum("bnhk,bnhv->bhkv", k, v)) <= 2e-6


@pytest.mark.slow
def test_padding_on_either_side_is_invisible():
    inputs = make_inputs(Case("padded", (2, 90, 2, 8, 8), [-0.5, -0.01], initial_state=True))
    alone = [apply(Inputs(*(x[:, :40] for x in inputs[:3]), *inputs[3:5], None, None, None), "auto")]
    for left in (0, 30, 50):
        padded = [np.zeros_like(x) for x in inputs[:3]]
        for target, source in zip(padded, inputs[:3], strict=True):
            target[:] = np.nan  # whatever is in the padding must not matter
            target[:, left : left + 40] = source[:, :40]
        ids = np.zeros((2, 90), np.int32)
        ids[:, left : left + 40] = 3
        for backend in ANYWHERE:
            out, state = apply(Inputs(*padded, *inputs[3:5], ids, None, None), backend)
            np.testing.assert_allclose(out[:, left : left + 40], alone[0][0], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(state, alone[0][1], rtol=1e-5, atol=1e-5)
            assert not np.asarray(out)[ids == 0].any()


def test_gradient_keeps_no_state_per_token():
    shape = jax.ShapeDtypeStruct((1, 8192, 16, 128), jnp.float32)
    log_decay = -jnp.logspace(-3, 0, 16)

    def loss(q, k, v):
        return jnp.sum(linear_attention(q, k, v, log_decay, backend="chunked")[0])

    program = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).compile()
    assert program.memory_analysis().temp_size_in_bytes < 1e9


def test_token_positions():
    ids = jnp.array([[0, 0, 4, 4, 0, 4, 2, 2, 0], [5, 5, 5, 1, 1, 5, 5, 0, 0], [0] * 9])
    expected = [[9, 9, 10, 11, 11, 12, 0, 1, 1], [20, 21, 22, 0, 1, 0, 1, 1, 1], [29] * 9]
    np.testing.assert_array_equal(token_positions(ids, jnp.array([10, 20, 30])), expected)


def test_auto_takes_one_matrix_for_a_short_row():
    assert resolve_backend("auto", Problem(2, 1, 4, 64, 64)) == "quadratic"
    assert resolve_backend("auto", Problem(2, 65, 4, 64, 64)) == "chunked"
    assert resolve_backend("auto", Problem(2, 65, 4, 128, 64)) == "chunked"
    assert resolve_backend("auto", Problem(2, 65, 4, 128, 64), chunk_size=32) == "chunked"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backend": "chunk"}, "unknown backend 'chunk': did you mean 'chunked'?"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"k": jnp.zeros((1, 5, 2, 8))}, "k has shape"),
        ({"v": jnp.zeros((1, 4, 2, 8), jnp.bfloat16)}, "give one dtype"),
        ({"log_decay": jnp.zeros(3)}, "log_decay has shape"),
        ({"log_decay": jnp.zeros(2), "causal": False}, "causal=False takes no decay"),
        ({"log_decay": alibi_slopes(2)}, "log_decay must be <= 0: of slopes"),
        ({"log_decay": [-0.1, float("nan")]}, "log_decay must be <= 0: of slopes"),
        ({"v": jnp.zeros((1, 4, 3, 8))}, "those of v must be a multiple of those of q"),
        ({"max_segments": 0}, "max_segments is 0"),
        ({"initial_state": jnp.zeros((1, 2, 8, 8)), "max_segments": 3}, "initial_state has shape"),
    ],
)
def test_mistakes_are_one_sentence(change, message):
    arguments = dict.fromkeys(("q", "k", "v"), jnp.zeros((1, 4, 2, 8))) | change
    # The annotations themselves refuse some shapes here (conftest); users get the sentence.
    unchecked = linear_attention.__wrapped__ if hasattr(linear_attention, "__wrapped__") else linear_attention
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        unchecked(**arguments)


@pytest.mark.parametrize("backend", [name for name in ANYWHERE if name != "quadratic"])
def test_the_document_before_leaves_nothing_not_even_in_the_rounding(backend: str):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 96, 1, 4))
    ids = (1 + jnp.arange(96) // 32)[None]  # three documents, of which the first two write numbers 10^4 times as large
    k = jnp.where(ids[..., None, None] < 3, 1e4 * k, k)

    def attend(q, k, v, log_decay, ids):
        return linear_attention(q, k, v, log_decay, segment_ids=ids, backend=backend, chunk_size=8)

    log_decay, attend = jnp.array([-0.3]), jax.jit(attend)
    out, state = attend(q, k, v, log_decay, ids)
    alone, alone_state = attend(q[:, 64:], k[:, 64:], v[:, 64:], log_decay, None)
    assert relative_rms(out[:, 64:], np.asarray(alone, np.float64)) <= 1e-6
    assert relative_rms(state, np.asarray(alone_state, np.float64)) <= 1e-6


@pytest.mark.parametrize("causal", [True, False])
@each_backend
def test_types_do_not_widen_where_float64_is_the_default(backend: str, causal: bool):
    with jax.enable_x64(True):
        q, ids = jnp.zeros((1, 20, 2, 4), jnp.float32), jnp.ones((1, 20), jnp.int32)

        def loss(q, k, v):
            out, state = linear_attention(q, k, v, segment_ids=ids, causal=causal, backend=backend, chunk_size=8)
            assert out.dtype == state.dtype == jnp.float32
            return out.sum() + state.sum()

        gradients = jax.eval_shape(jax.grad(loss, argnums=(0, 1, 2)), q, q, q)
        assert {gradient.dtype for gradient in gradients} == {jnp.dtype("float32")}


def test_a_row_that_is_one_document_needs_two_products_without_causality():
    q = jax.ShapeDtypeStruct((1, 1024, 1, 64), jnp.float32)
    attend = functools.partial(linear_attention, causal=False)
    flops = jax.jit(attend).lower(q, q, q).compile().cost_analysis()["flops"]
    assert flops <= 1.01 * (4 * 1024 * 64 * 64)


def test_the_scale_is_not_rounded_and_may_be_traced():
    # 0.3 in bfloat16 is off by 0.26%; the roundings of products and outputs nearly cancel in the mean.
    q = jnp.linspace(1, 2, 512, dtype=jnp.bfloat16).reshape(1, 128, 1, 4)
    ones = jnp.ones_like(q)
    attend = jax.jit(functools.partial(linear_attention, causal=False))
    out, _ = attend(q, ones, ones, scale=jnp.float32(0.3))
    expected = 0.3 * np.asarray(q, np.float64).sum(-1) * 128
    assert abs(np.mean(np.asarray(out, np.float64)[..., 0] / expected) - 1) <= 5e-4


@each_backend
def test_no_rows_are_a_batch(backend: str):
    q, ids = jnp.zeros((0, 20, 2, 4)), jnp.zeros((0, 20), jnp.int32)
    for options in ({}, {"segment_ids": ids}, {"causal": False}):
        out, state = jax.eval_shape(functools.partial(linear_attention, backend=backend, **options), q, q, q)
        assert (out.shape, state.shape) == (q.shape, (0, 2, 4, 4))


def test_without_causality_half_precision_is_near():
    q, k, v, d_out = jax.random.normal(jax.random.key(0), (4, 2, 300, 2, 16), jnp.bfloat16)
    state = jax.random.normal(jax.random.key(1), (2, 2, 16, 16))

    @jax.jit
    def results(*operands):
        out, pull_back = jax.vjp(functools.partial(linear_attention, causal=False), *operands[:3])
        return out, pull_back((operands[3], state.astype(jnp.float32)))

    exact = results(*(x.astype(jnp.float32) for x in (q, k, v, d_out)))
    for a, b in zip(jax.tree.leaves(results(q, k, v, d_out)), jax.tree.leaves(exact), strict=True):
        assert relative_rms(a, np.asarray(b, np.float64)) <= 5e-3


@pytest.mark.parametrize(
    ("backend", "axes"),
    [*((name, (0, 0, 0, 0)) for name in [*ANYWHERE, "pallas_tpu"]), ("chunked", (None, 0, None, None))],
)
def test_vmap_equals_a_loop(backend: str, axes):
    q, k, v = jax.random.normal(jax.random.key(0), (3, 3, 2, 20, 2, 4))
    log_decay = -jnp.exp(jax.random.normal(jax.random.key(1), (3, 2)))
    operands = [x if axis == 0 else x[0] for x, axis in zip((q, k, v, log_decay), axes, strict=True)]

    def gradient(*operands):
        def loss(*operands):
            out, state = linear_attention(*operands, backend=backend, chunk_size=8)
            return jnp.sum(jnp.sin(out)) + jnp.sum(state)

        return jax.grad(loss, argnums=(0, 1, 2, 3))(*operands)

    with interpret_kernels():
        actual = jax.jit(jax.vmap(gradient, axes))(*operands)
    backend = "chunked" if backend == "pallas_tpu" else backend
    for i in range(3):
        expected = jax.jit(gradient)(*(x[i] if axis == 0 else x for x, axis in zip(operands, axes, strict=True)))
        for a, b, bound in zip(actual, expected, (5e-6, 5e-6, 5e-6, 2e-5), strict=True):
            assert relative_rms(a[i], np.asarray(b, np.float64)) <= bound


def test_a_decay_may_be_a_number_a_list_or_an_array():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 20, 2, 4))
    expected, _ = jax.jit(linear_attention)(q, k, v, jnp.full((1, 20, 2), -0.5))
    for log_decay in (-0.5, [-0.5, -0.5], np.full(2, -0.5), jnp.float32(-0.5)):
        out, _ = jax.jit(lambda q, k, v, log_decay=log_decay: linear_attention(q, k, v, log_decay))(q, k, v)
        np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_documents_that_do_not_occur_keep_their_state_and_too_many_are_nan():
    inputs = make_inputs(DOCUMENT_CASES[1])
    options = {"initial_state": inputs.initial_state, "segment_ids": inputs.segment_ids}
    attend = jax.jit(linear_attention, static_argnames="max_segments")
    out, states = attend(*inputs[:4], max_segments=7, **options)
    assert np.isfinite(out).all()
    np.testing.assert_array_equal(states[:, 6], inputs.initial_state[:, 6])
    options["initial_state"] = inputs.initial_state[:, :2]
    out, _ = attend(*inputs[:4], max_segments=2, **options)
    assert np.isnan(out).any()  # documents without a slot


def test_a_constant_decay_makes_no_array_per_token():
    shape = jax.ShapeDtypeStruct((3, 1024, 7, 16), jnp.float32)

    def loss(q, k, v):
        return jnp.sum(linear_attention(q, k, v, jnp.full(7, -0.1), backend="chunked")[0])

    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(shape, shape, shape).as_text()
    assert "x7x16xf32" in text
    assert not [line for line in text.splitlines() if "3x1024x7xf32" in line or "16x7x64xf32" in line]
